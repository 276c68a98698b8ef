"""Molecules at the ends of the depths that network and PSF cover."""

from __future__ import annotations

from typing import final

from decode.emitters import EmitterSet

__all__ = ["DepthEnds"]


@final
class DepthEnds:
    """Count of the molecules that lie exactly at the smallest or the largest z of a table.

    A molecule beyond the depths that network and PSF cover is placed at their end.
    """

    def __init__(self) -> None:
        self._n = 0
        self._ends: dict[str, tuple[float, int]] = {}

    def see(self, molecules: EmitterSet) -> None:
        """Count molecules."""
        z = molecules.xyz[:, 2]
        if not len(z):
            return
        self._n += len(z)
        for name, end in (("lowest", float(z.min())), ("highest", float(z.max()))):
            before, n = self._ends.get(name, (end, 0))
            further = min(before, end) if name == "lowest" else max(before, end)
            self._ends[name] = further, n * (before == further) + int((z == further).sum())

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence on each end at which there is more than one molecule."""
        if len({z for z, _ in self._ends.values()}) < 2:  # a table without depth
            return ()
        return tuple(
            f"{n} of {self._n} molecules lie at z = {z:.0f} nm, an end of the depths that network "
            "and PSF know: they may lie beyond it, so leave them out of what depth decides"
            for z, n in self._ends.values()
            if n > 1
        )
