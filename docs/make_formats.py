"""Make what lists the formats again: docs/formats.md, and what napari knows of them.

Usage: python docs/make_formats.py
"""

from __future__ import annotations

import re
from pathlib import Path

from decode.io.movies import movie_suffixes
from decode.io.tables import table_suffixes, written_formats
from decode.verbs.formats import formats

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "formats.md"
MANIFEST = ROOT / "napari_plugin" / "decode_napari" / "napari.yaml"

WRITER = """\
    - command: decode-smlm.write_molecules
      display_name: {title}
      layer_types: ["points"]
      filename_extensions: ["{suffix}"]
"""


def page() -> str:
    return f"{formats()}\n"


def manifest(before: str) -> str:
    """The manifest with the patterns of its readers and the list of its writers made anew."""
    after = before
    for command, suffixes in (("molecules", table_suffixes()), ("movie", movie_suffixes())):
        listed = ", ".join(f'"*{suffix}"' for suffix in suffixes)
        patterns = rf"(read_{command}\n      filename_patterns:) \[.*\]"
        after = re.sub(patterns, rf"\1 [{listed}]", after)
    writers = "".join(
        WRITER.format(title=each.title, suffix=suffix) for suffix, each in written_formats().items()
    )
    return re.sub(r"(?<=  writers:\n)(?s:.*?)(?=  widgets:\n)", lambda _: writers, after)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    MANIFEST.write_text(manifest(MANIFEST.read_text(encoding="utf-8")), encoding="utf-8")
