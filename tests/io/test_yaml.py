"""YAML of settings: whatever the text, it costs little and is refused in one sentence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from decode.io.yaml import MAX_BYTES, parse_yaml, read_documents, read_yaml

BOMB = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '0'] * 9)}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "the alias \\*'k0' is not read; write its value out"),
        ("a: &a [*a]", "the alias"),
        ("a: " + "[" * 5000, "nest"),
        ("a: " + "{b: " * 50 + "0" + "}" * 50, "too long or nested too deeply"),
        ("a: " + "1:" * 20_000 + "1", "too long or nested too deeply"),
        ("a: " + "9" * 6000, "it is damaged"),
        ("a: [", "is not a YAML text"),
        ("\0", "is not a YAML text"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("just words", "must hold `key: value` lines"),
        ("", "must hold one set of `key: value` lines"),
        ("a: 1\n---\nb: 2\n", "must hold one set of `key: value` lines"),
    ],
)
def test_a_text_without_bounds_or_sense_is_refused_in_a_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=sentence) as refused:
        read_yaml(path)
    assert time.process_time() - began < 5
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


def test_what_is_no_text_of_settings_is_not_read_at_all(tmp_path: Path) -> None:
    path = tmp_path / "movie.yaml"
    path.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="too large"):
        read_yaml(path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_plain_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("\ufeffa: {b: [1, 2.5, x]}\n1: yes\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": [1, 2.5, "x"]}, "1": True}
    path.write_text("a: 1\n---\n---\nb: 2\n")
    assert read_documents(path) == [{"a": 1}, {"b": 2}]
    assert parse_yaml("[1, 2]", "--set a") == [[1, 2]]
