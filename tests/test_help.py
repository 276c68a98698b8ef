"""The help of every command ends with examples that the command line understands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from decode.cli import app


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command that does something, by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def examples(words: tuple[str, ...]) -> list[list[str]]:
    shown = CliRunner().invoke(app, [*words, "--help"]).output
    _, _, after = shown.partition("Examples:\n")
    lines = [line.partition(" > ")[0] for line in after.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def called(example: list[str]) -> tuple[str, ...]:
    """The words of the command that an example calls: that of the page, or one that goes before
    it."""
    program, *arguments = example
    assert program == "decode"
    return next(words for n in (2, 1) if (words := tuple(arguments[:n])) in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_ends_with_examples_that_parse(words: tuple[str, ...]) -> None:
    shown = {tuple(example): called(example) for example in examples(words)}
    assert words in shown.values()
    for example, others in shown.items():
        COMMANDS[others].make_context(others[-1], [*example[1 + len(others) :]])


def test_an_option_that_does_not_exist_would_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS[("link",)].make_context("link", ["t.csv", "-o", "m.csv", "--gaps", "3"])


def test_the_shell_completes_commands() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "decode"],
        env=os.environ
        | {"_DECODE_COMPLETE": "complete_bash", "COMP_WORDS": "decode lo", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.split() == ["localize"]
