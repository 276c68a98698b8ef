"""Facts on pixels, planes and frames from the metadata of a TIFF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final
from xml.etree import ElementTree

import tifffile

from decode.io.movies.units import MS_PER, credible_pixel, credible_step, length_nm, positive

__all__ = ["StatedFacts", "stated_facts"]

MICRO_MANAGER_TAG = 51123


@final
@dataclass(frozen=True, kw_only=True)
class StatedFacts:
    """Facts of a movie; None where the metadata state nothing plausible."""

    pixel_sides_nm: tuple[float, float] | None = None
    """x, y"""
    exposure_ms: float | None = None
    z_step_nm: float | None = None


def stated_facts(tiff: tifffile.TiffFile) -> StatedFacts:
    """The facts that the writing program stated."""
    tag = tiff.pages.first.tags.get(MICRO_MANAGER_TAG)
    if tag is not None and isinstance(tag.value, Mapping):
        return _of_micro_manager(tag.value)
    if tiff.is_ome:
        return _of_ome(tiff.ome_metadata or "")
    if tiff.imagej_metadata is not None:
        return _of_imagej(tiff.imagej_metadata, tiff.pages.first.tags)
    return StatedFacts()


def _of_micro_manager(facts: Mapping[str, Any]) -> StatedFacts:
    side = length_nm(facts.get("PixelSizeUm"), "um")
    return StatedFacts(
        pixel_sides_nm=credible_pixel(side, side),
        exposure_ms=positive(facts.get("Exposure-ms")),
        z_step_nm=credible_step(length_nm(facts.get("ZStepUm"), "um")),
    )


def _of_ome(text: str) -> StatedFacts:
    try:
        document = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return StatedFacts()
    pixels, plane = _attributes(document, "Pixels"), _attributes(document, "Plane")

    def size(axis: str) -> float | None:
        name = f"PhysicalSize{axis}"
        return length_nm(pixels.get(name), pixels.get(f"{name}Unit", "µm"))

    seconds = positive(plane.get("ExposureTime"))
    scale = MS_PER.get(plane.get("ExposureTimeUnit", "s"))
    return StatedFacts(
        pixel_sides_nm=credible_pixel(size("X"), size("Y")),
        exposure_ms=seconds * scale if seconds and scale else None,
        z_step_nm=credible_step(size("Z")),
    )


def _attributes(document: ElementTree.Element, name: str) -> Mapping[str, str]:
    """Attributes of the first element of that name; none where it is absent."""
    element = document.find(f".//{{*}}{name}")
    return {} if element is None else element.attrib


def _of_imagej(facts: Mapping[str, Any], tags: tifffile.TiffTags) -> StatedFacts:
    """Lengths have one unit; without any, the 1 pixel per pixel of an uncalibrated image."""
    unit = str(facts.get("unit"))

    def side(axis: str) -> float | None:
        """A resolution is a ratio of pixels to units."""
        tag = tags.get(f"{axis}Resolution")
        if tag is None:
            return None
        pixels, steps = tag.value
        return length_nm(steps / max(pixels, 1), unit)

    return StatedFacts(
        pixel_sides_nm=credible_pixel(side("X"), side("Y")),
        z_step_nm=credible_step(length_nm(facts.get("spacing"), unit)),
    )
