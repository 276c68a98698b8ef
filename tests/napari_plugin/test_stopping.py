"""A verb stops in the midst of its work, wherever that is."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest
import torch

from decode_napari.stopping import Stop, Stopped


def test_a_stop_reaches_a_verb_between_its_yields_and_lets_it_clean_up() -> None:
    cleaned, stop = [], Stop()

    def verb() -> Generator[int, None, None]:
        try:
            yield 1
            while True:
                torch.ones(3).sum()
        finally:
            cleaned.append(True)

    watched = stop.watch(verb())
    assert next(watched) == 1
    threading.Timer(0.2, stop.ask).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        next(watched)
    assert time.monotonic() - start < 5
    assert cleaned == [True]


def test_a_verb_that_is_left_alone_gives_its_reports_and_its_result() -> None:
    def verb() -> Generator[float, None, str]:
        yield float(torch.ones(2).sum())
        return "done"

    watched = Stop().watch(verb())
    assert next(watched) == 2.0
    with pytest.raises(StopIteration, match="done"):
        next(watched)


def test_while_a_verb_waits_others_are_not_stopped() -> None:
    def verb() -> Generator[int, None, None]:
        yield 1
        yield 2

    stop = Stop()
    watched = stop.watch(verb())
    next(watched)
    stop.ask()
    assert float(torch.ones(2).sum()) == 2.0
    with pytest.raises(Stopped):
        next(watched)
