"""Picasso's raw movies, described by a YAML file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from decode.errors import reading
from decode.io.movies.block import BlockPart
from decode.io.movies.facts import StatedFacts
from decode.io.movies.format import MovieFormat, Part
from decode.io.movies.selection import TIME, Axis, Selection, choose
from decode.io.movies.units import credible_pixel, positive
from decode.io.yaml import read_documents

__all__ = ["FORMAT"]

DESCRIBED = {"Byte Order", "Data Type", "Frames", "Height", "Width"}


def _is_raw(path: Path) -> bool:
    if path.suffix.lower() != ".raw" or not path.is_file():
        return False
    beside = path.with_suffix(".yaml")
    return beside.is_file() and set(_stated(beside)) >= DESCRIBED


def _stated(description: Path) -> dict[str, Any]:
    documents = read_documents(description)
    return documents[0] if documents else {}


def _open_raw(path: Path, selection: Selection, *, allow_truncated: bool) -> Part:
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        raise ValueError(
            f"{path} is described by {beside}, which is missing; for a binary file without "
            "description, state --raw-shape and --raw-dtype"
        )
    with reading(beside, "the description of Picasso's raw movie", "copy it again"):
        stated = _stated(beside)
        order = {"<": "<", "little": "<", ">": ">", "big": ">"}[str(stated["Byte Order"])]
        dtype = np.dtype(order + np.dtype(str(stated["Data Type"])).str[1:])
        if dtype.kind not in "uif":
            raise ValueError(f"it holds {dtype}, not counts")
        height, width, n_frames = (int(stated[key]) for key in ("Height", "Width", "Frames"))
        choose(path, [Axis(name=TIME, size=n_frames)], selection)
        side = positive(stated.get("Pixelsize", stated.get("Camera.Pixelsize")))
        camera = stated.get("Camera")
        facts = StatedFacts(
            pixel_sides_nm=credible_pixel(side, side),
            exposure_ms=positive(stated.get("Camera.Integration Time")),
            camera_name=None if camera is None else str(camera),
        )
    return BlockPart.of(
        path,
        frame_shape=(height, width),
        dtype=dtype,
        n_frames=n_frames,
        first_byte=0,
        description=beside,
        facts=facts,
        allow_truncated=allow_truncated,
    )


FORMAT = MovieFormat(
    name="picasso",
    title="Picasso's raw movie",
    content="a `.yaml` of its name beside it, with `Byte Order` and `Frames`",
    suffixes=(".raw",),
    recognizes=_is_raw,
    read=_open_raw,
    sidecar=".yaml",
)
