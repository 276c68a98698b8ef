"""Errors in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from decode.errors import LONGEST, brief, in_plain_words, reading

PATH = Path("some folder/table.csv")


def message(error: Exception) -> str:
    with pytest.raises((ValueError, OSError)) as caught, reading(PATH, "a table"):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RecursionError("deep"),
        MemoryError(),
        OverflowError(),
        OSError(22, "Invalid argument"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_becomes_a_sentence_with_the_name_of_the_file(
    error: Exception,
) -> None:
    text = message(error)
    assert text.startswith(f"{PATH} is not a table, or it is damaged ({type(error).__name__}")
    assert text.endswith("; make or copy it again")


def test_what_names_the_file_or_comes_from_the_system_stays_as_it_is() -> None:
    for error in (
        ValueError(f"{PATH} has no column x"),
        FileNotFoundError(f"there is no  file {PATH.with_suffix('.yaml')}"),
        PermissionError(13, "Permission denied", str(PATH)),
    ):
        with pytest.raises(type(error)) as caught, reading(PATH, "a table"):
            raise error
        assert caught.value is error


def test_no_value_is_printed_beyond_a_line() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep] * 9
    for value in ("x" * 10**6, list(range(10**5)), deep, {"a": "y" * 10**5}, "a\nb"):
        assert len(brief(value)) <= 80
        assert "\n" not in brief(value)
    for error in (
        ValueError(f"{PATH} " + "x" * 10**6),
        KeyError("x" * 10**6),
        ValueError("a\n" * 5000),
    ):
        assert len(message(error)) <= LONGEST
        assert "\n" not in message(error)
        assert len(in_plain_words(error)) <= LONGEST
