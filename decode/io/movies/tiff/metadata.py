"""Facts on pixels, planes and frames from the metadata of a TIFF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import tifffile

from decode.io.movies.facts import StatedFacts
from decode.io.movies.units import MS_PER, credible_pixel, credible_step, length_nm, positive

__all__ = ["channel_names", "stated_facts"]

MICRO_MANAGER_TAG = 51123


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
    camera = facts.get("Core-Camera") or facts.get("Camera")
    camera = facts.get(f"{camera}-CameraName") or camera
    return StatedFacts(
        pixel_sides_nm=credible_pixel(side, side),
        exposure_ms=positive(facts.get("Exposure-ms")),
        z_step_nm=credible_step(length_nm(facts.get("ZStepUm"), "um")),
        camera_name=str(camera) if camera else None,
    )


def _of_ome(text: str) -> StatedFacts:
    try:
        document = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return StatedFacts()
    pixels, plane = _attributes(document, "Pixels"), _attributes(document, "Plane")
    detector = _attributes(document, "Detector")

    def size(axis: str) -> float | None:
        name = f"PhysicalSize{axis}"
        return length_nm(pixels.get(name), pixels.get(f"{name}Unit", "µm"))

    seconds = positive(plane.get("ExposureTime"))
    scale = MS_PER.get(plane.get("ExposureTimeUnit", "s"))
    return StatedFacts(
        pixel_sides_nm=credible_pixel(size("X"), size("Y")),
        exposure_ms=seconds * scale if seconds and scale else None,
        z_step_nm=credible_step(size("Z")),
        camera_name=detector.get("Model") or detector.get("Name"),
    )


def channel_names(tiff: tifffile.TiffFile) -> tuple[str, ...]:
    """Names of the channels of the first image; none where nothing states them."""
    if tiff.is_micromanager:
        names = (tiff.micromanager_metadata or {}).get("Summary", {}).get("ChNames", ())
        return tuple(map(str, names)) if isinstance(names, list) else ()
    if not tiff.is_ome:
        return ()
    try:
        document = ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:
        return ()
    pixels = document.find(".//{*}Pixels")
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    return tuple(channel.get("Name", "") for channel in channels)


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
