"""The folder of movies that are not part of the project."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def add_data(parser: argparse.ArgumentParser) -> None:
    """The folder of the movies: an argument, else DECODE_DATA, else beside the project."""
    where = Path(os.environ.get("DECODE_DATA", BESIDE))
    parser.add_argument(
        "data", type=Path, nargs="?", default=where, help="folder of the movies (DECODE_DATA)"
    )


def folder(data: Path, name: str) -> Path:
    """One movie's folder; if it is absent, the benchmark ends with a sentence."""
    if not (data / name).is_dir():
        print(
            f"Skipped: there is no folder {name} in {data}; name the folder that holds it, or set "
            "DECODE_DATA."
        )
        raise SystemExit(0)
    return data / name
