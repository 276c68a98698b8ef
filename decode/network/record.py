"""ModelRecord: how a model was trained, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, final

__all__ = ["ModelRecord"]


@final
@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The typed JSON beside the weights; an empty record where nothing is known.

    Example:
        >>> record = ModelRecord.from_json({"steps": 40000, "config": {"pixel_size_nm": 100.0}})
        >>> record.steps, record.pixel_size_nm, record.z_nm
        (40000, 100.0, None)
        >>> record.to_json()
        {'config': {'pixel_size_nm': 100.0}, 'steps': 40000}
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    """the recipe, as YAML holds it"""
    decode: str = ""
    """version"""
    torch: str = ""
    """version"""
    hardware: str = ""
    threads: int | None = None
    processes: int = 1
    steps: int = 0
    minutes: float | None = None
    skipped_steps: int | None = None
    """steps that were skipped because the loss was not finite"""
    recovered: int = 0
    """number of times that the training diverged and was resumed"""
    validation: tuple[Mapping[str, float], ...] = ()
    """scores during the training, with step and minutes"""
    start: ModelRecord | None = None
    """record of the model whose weights the training started from"""
    figures: tuple[Mapping[str, float], ...] | None = None
    """scores by density and flux; None for an unfinished training"""
    remarks: tuple[str, ...] | None = None
    """limitations of the model, a sentence each; None for an unfinished training"""
    calibration: Mapping[str, Any] | None = None
    """how right probabilities, uncertainties and counts are (`decode.quality.CalibrationRecord`)"""
    limits: Mapping[str, Any] | None = None
    """limits of the checks after a localization (`decode.quality.Limits`)"""
    others: Mapping[str, Any] = field(default_factory=dict)
    """entries of other versions of decode"""

    def __post_init__(self) -> None:
        for name in ("config", "others"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} of a model's record must hold keys and values")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelRecord:
        """The record of plain values; unknown keys are kept in `others`.

        Raises:
            ValueError: if a value has another shape than it must.
        """
        known = {f.name for f in fields(cls)} - {"others"}
        values = {name: value for name, value in content.items() if name in known}
        others = {name: value for name, value in content.items() if name not in known}
        for name in ("validation", "figures", "remarks"):
            if name in values:
                values[name] = tuple(values[name])
        if "start" in values:
            values["start"] = cls.from_json(values["start"])
        return cls(**values, others=others)

    def to_json(self) -> dict[str, Any]:
        """Plain values; unknown ones are left out."""
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "others" or value == getattr(ModelRecord(), f.name):
                continue
            plain[f.name] = _plain(value)
        return {**plain, **self.others}

    @property
    def description(self) -> str:
        """Description of the recipe, or ""."""
        return str(self.config.get("description") or "")

    @property
    def pixel_size_nm(self) -> float | None:
        """Side of a pixel of the simulations."""
        return self.config.get("pixel_size_nm")

    @property
    def z_nm(self) -> tuple[float, float] | None:
        """Lowest and highest depth of the simulated molecules."""
        return _range(self._section("scene").get("z_nm"))

    @property
    def background_photons(self) -> tuple[float, float] | None:
        """Lowest and highest background of the simulations, per pixel."""
        return _range(self._section("scene").get("background_photons"))

    @property
    def flicker_factor(self) -> tuple[float, float] | None:
        """Range of the factor by which the background of simulations jumps between frames; None: it
        does not."""
        scene = self._section("scene")
        if not scene.get("flicker", 0.0) > 0:
            return None
        return _range(scene["flicker_factor"])

    @property
    def max_bad_pixels(self) -> float:
        """Largest share of bad pixels of the simulated cameras."""
        _, most = self._section("camera").get("bad_pixels", (0.0, 0.0))
        return float(most)

    @property
    def counts_core(self) -> bool:
        """Whether photons are those of the Gaussian core of the PSF, and not all."""
        return self._section("training").get("photons", "total") == "core"

    def _section(self, name: str) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self.config.get(name, {})
        return section


def _plain(value: Any) -> Any:
    if isinstance(value, ModelRecord):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value


def _range(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    low, high = values
    return float(low), float(high)
