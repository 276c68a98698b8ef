"""YAML files of plain values: bounded in size and depth, and without aliases, which can
expand to any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from decode.errors import brief, reading

__all__ = ["parse_yaml", "read_documents", "read_yaml"]

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_LETTERS = 10_000
"""most letters of one value; a longer number takes minutes to read"""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ValueError: in one sentence, if the file is not a YAML mapping.
        OSError: if it cannot be read.
    """
    documents = read_documents(path)
    if len(documents) != 1:
        raise ValueError(
            f"{path} is not a file of settings: it must hold one set of `key: value` lines"
        )
    return documents[0]


def read_documents(path: Path | str) -> list[dict[str, Any]]:
    """The mappings of a YAML file of several documents; empty ones are left out.

    Raises:
        ValueError, OSError: as `read_yaml` does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: too large for a YAML file of settings, which takes some kilobytes"
        )
    with reading(path, "a YAML file", "check its text"):
        documents = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    found = [document for document in documents if document is not None]
    if not all(isinstance(document, dict) for document in found):
        raise ValueError(f"{path} is not a file of settings: it must hold `key: value` lines")
    return [{str(key): value for key, value in document.items()} for document in found]


def parse_yaml(text: str, source: str) -> list[Any]:
    """The plain values of each document of a text.

    Raises:
        ValueError: in one sentence that names `source`, if it is not YAML or beyond the bounds.
    """
    depth = 0
    with reading(source, "a YAML text", "check its text"):
        for event in yaml.parse(text, Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    f"{source}: the alias *{brief(event.anchor)} is not read; write its value out"
                )
            if depth > MAX_DEPTH or (
                isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_LETTERS
            ):
                raise ValueError(
                    f"{source}: a value is too long or nested too deeply; check its text"
                )
        return list(yaml.load_all(text, Loader))
