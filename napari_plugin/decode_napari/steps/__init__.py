"""The steps of the work, in order.  A new one is added to this list; steps do not know one
another."""

from __future__ import annotations

from decode_napari.steps.drift import DriftStep
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.link import LinkStep
from decode_napari.steps.localize import LocalizeStep
from decode_napari.steps.model import ModelStep
from decode_napari.steps.movie import MovieStep
from decode_napari.steps.psf import PSFStep
from decode_napari.steps.quality import QualityStep
from decode_napari.steps.step import Step

__all__ = ["STEPS"]

STEPS: tuple[type[Step], ...] = (
    MovieStep,
    PSFStep,
    ModelStep,
    LocalizeStep,
    InspectStep,
    DriftStep,
    LinkStep,
    QualityStep,
    ExportStep,
)
