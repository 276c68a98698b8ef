"""watch: movies to molecules while a microscope writes them."""

from __future__ import annotations

from decode.verbs.watch.figures import Update
from decode.verbs.watch.watching import IDLE_S, Watched, watch

__all__ = ["IDLE_S", "Update", "Watched", "watch"]
