"""Long work in steps: whoever calls it gets its result, whoever steps through it may stop."""

from __future__ import annotations

import inspect
import sys

import pytest

from decode.progress import Bar, Progress, Steps, Stepwise, followed, part, shares

CLOSED: list[str] = []


@Stepwise
def counted(n: int, *, name: str = "") -> Steps[int]:
    """Count."""
    try:
        for i in range(n):
            yield Progress(i / n, "counting")
        yield Progress(1.0)
        return n
    finally:
        CLOSED.append(name)


def gone_through(steps: Steps[int]) -> tuple[list[Progress], int]:
    """All steps, and the result."""
    seen: list[Progress] = []
    return seen, followed(steps, seen.append)


def test_a_stepwise_function_is_called_like_any_other() -> None:
    assert counted(3) == 3
    assert counted.__doc__ == "Count."
    assert list(inspect.signature(counted).parameters) == ["n", "name"]
    assert gone_through(counted.steps(2))[1] == 2


def test_parts_make_up_a_whole_that_rises_from_0_to_1() -> None:
    def whole() -> Steps[int]:
        first, second = shares(1, 3)
        a = yield from part(counted.steps(2), *first)
        b = yield from part(counted.steps(3), *second, "the second part")
        return a + b

    seen, result = gone_through(whole())
    assert result == 5
    fractions = [progress.fraction for progress in seen]
    assert fractions == pytest.approx([0, 0.125, 0.25, 0.25, 0.5, 0.75, 1])
    messages = [progress.message for progress in seen]
    assert messages == ["counting"] * 2 + [""] + ["the second part"] * 4


def test_shares_leave_no_gap() -> None:
    spans: list[object] = list(shares(2, 0, 6, start=0.2))
    assert spans == [pytest.approx(s) for s in ((0.2, 0.4), (0.4, 0.4), (0.4, 1.0))]


def test_a_part_ends_with_its_whole() -> None:
    CLOSED.clear()
    steps = part(part(counted.steps(5, name="inner"), 0, 0.5), 0, 1)
    next(steps)
    assert CLOSED == []
    steps.close()
    assert CLOSED == ["inner"]


def test_a_log_file_gets_a_line_a_minute_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("decode.progress.time.monotonic", lambda: now[0])
    with Bar(total=300, desc="train", bar_format="{desc} {n_fmt}/{total_fmt}{postfix}") as bar:
        for second in range(300):
            now[0] += 1
            bar.set_postfix_str(f"loss {second}", refresh=False)
            bar.update(1)
        bar.write("a warning", file=sys.stderr)
        bar.reset(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        *(f"train {n}/300, loss {n - 1}" for n in (60, 120, 180, 240, 300)),
        "a warning",
    ]
