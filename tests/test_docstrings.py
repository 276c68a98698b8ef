"""The examples in docstrings run and give what they say, and public names are documented."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import decode

ROOT = Path(__file__).parents[1]


def modules_with_examples() -> list[str]:
    files = sorted((ROOT / "decode").rglob("*.py"))
    named = [file.relative_to(ROOT).with_suffix("") for file in files if ">>> " in file.read_text()]
    return [".".join(name.parts).removesuffix(".__init__") for name in named]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(import_module(name))
    assert result.attempted
    assert not result.failed


PUBLIC = [name for name in decode.__all__ if name != "batch"]  # a job takes minutes: docs/batch.md


def fields_without_text(noun: type) -> list[str]:
    """Fields of a dataclass that no text follows."""
    source = ast.parse(textwrap.dedent(inspect.getsource(noun))).body[0]
    assert isinstance(source, ast.ClassDef)
    pairs = pairwise([*source.body, ast.Pass()])
    return [
        each.target.id
        for each, following in pairs
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and not each.target.id.startswith("_")
        and not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_say_all_that_a_user_needs(name: str) -> None:
    """An example; of a verb each argument, what is returned and what is refused; of a noun its
    fields and methods."""
    thing = getattr(decode, name)
    text = inspect.getdoc(thing) or ""
    assert ">>> " in text
    if isinstance(thing, type):
        own = {m: v for m, v in vars(thing).items() if not m.startswith("_")}
        methods = [m for m, v in own.items() if inspect.isroutine(v) or isinstance(v, property)]
        assert [m for m in methods if not inspect.getdoc(getattr(thing, m))] == []
        if is_dataclass(thing):
            assert fields_without_text(thing) == []
        return
    arguments = text.partition("Args:\n")[2]
    asked = inspect.signature(thing)
    assert [p for p in asked.parameters if not re.search(rf"\b{p}\b", arguments)] == []
    assert "Raises:\n" in text
    assert "Returns:\n" in text or str(asked.return_annotation) == "None"


def test_what_modules_offer_has_a_text() -> None:
    bare = []
    for file in sorted((ROOT / "decode").rglob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        offered = {
            name
            for each in body
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__"
            for name in ast.literal_eval(each.value)
        }
        own = [each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)]
        bare += [
            f"{file.stem}.{each.name}"
            for each in own
            if each.name in offered and not ast.get_docstring(each)
        ]
    assert bare == []
