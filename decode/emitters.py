"""EmitterSet: the table of molecules that every stage reads and writes, with its movie's facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["CORRELATIONS", "STEPS", "Check", "EmitterSet", "Facts", "correlations"]

CORRELATIONS = ("corr_xy", "corr_xz", "corr_yz", "corr_xphotons", "corr_yphotons", "corr_zphotons")
"""names of the columns of `EmitterSet.correlation` in tables"""
PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""what they are correlations of: x, y, z and photons are 0 to 3"""
STEPS = ("filter", "drift", "link")
"""entries of a table's metadata that record a step, by the name of its command"""
WIDTHS = {"xyz": 3, "xyz_sigma": 3, "xyz_95": 3, "correlation": len(PAIRS)}
"""lengths of the rows of columns that hold more than one number"""


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether a figure of a movie and its molecules is as it should be."""

    name: str
    value: float | None
    """the figure; None where too little was seen to tell"""
    limit: float | None
    """beyond which it fails, on the side on which the figure lies"""
    passed: bool | None
    """None where too little was seen to tell"""
    sentence: str
    """what it means; of a check that failed, the likely cause and what to do"""

    @property
    def failed(self) -> bool:
        """Whether it was made and not passed."""
        return self.passed is False

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


@final
@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of the movie that a table's molecules were found in; None where nobody stated one."""

    pixel_size_nm: float | None = None
    n_frames: int | None = None
    height_px: int | None = None
    width_px: int | None = None
    psf_sigma_nm: float | None = None
    """width of the PSF that the molecules were localized with"""
    movie: str | None = None
    """path of its file"""
    aperture_correction: float | None = None
    """factor by which the photons of the Gaussian core of the PSF were multiplied; None: they were
    not"""
    threshold: float | None = None
    """smallest probability of a molecule"""
    version: str | None = None
    """version of the program that localized them"""
    model: str | None = None
    """name of the model that localized them, and the SHA-256 of its content"""
    psf: str | None = None
    """SHA-256 of the PSF (`decode.optics.description.digest_of`)"""
    camera: Mapping[str, object] | None = None
    """the numbers of the camera by their names in `Camera`; "map" for one number a pixel"""
    estimates: tuple[str, ...] = ()
    """a sentence on each fact that was taken from the model or estimated from the movie"""
    warnings: tuple[str, ...] = ()
    """a sentence on each defect of the movie and each doubt about the molecules"""
    checks: tuple[Check, ...] = ()
    """whether the molecules are right for the movie; failed ones first"""

    @staticmethod
    def of(metadata: Mapping[str, object]) -> Facts:
        """The facts that a table's metadata state, as far as they can be read."""

        def number(name: str) -> float | None:
            try:
                return float(str(metadata[name]))
            except (KeyError, ValueError):
                return None

        def count(name: str) -> int | None:
            value = number(name)
            return None if value is None else int(value)

        def sentences(name: str) -> tuple[str, ...]:
            value = metadata.get(name)
            return tuple(map(str, value)) if isinstance(value, list | tuple) else ()

        def checks() -> tuple[Check, ...]:
            stated = metadata.get("checks")
            rows = stated if isinstance(stated, list | tuple) else ()
            names = {f.name for f in fields(Check)}
            whole = (row for row in rows if isinstance(row, dict) and row.keys() == names)
            return tuple(Check(**row) for row in whole)

        def text(name: str) -> str | None:
            return str(metadata[name]) if name in metadata else None

        camera = metadata.get("camera")
        return Facts(
            pixel_size_nm=number("pixel_size_nm"),
            n_frames=count("n_frames"),
            height_px=count("height_px"),
            width_px=count("width_px"),
            psf_sigma_nm=number("psf_sigma_nm"),
            movie=text("movie"),
            aperture_correction=number("aperture_correction"),
            threshold=number("threshold"),
            version=text("version"),
            model=text("model"),
            psf=text("psf"),
            camera=dict(camera) if isinstance(camera, Mapping) else None,
            estimates=sentences("estimates"),
            warnings=sentences("warnings"),
            checks=checks(),
        )

    @property
    def field_nm(self) -> tuple[float, float] | None:
        """(x, y) size of the field of view, or None.

        >>> Facts(pixel_size_nm=100.0, width_px=64, height_px=32).field_nm
        (6400.0, 3200.0)
        """
        if self.width_px is None or self.height_px is None or self.pixel_size_nm is None:
            return None
        return self.width_px * self.pixel_size_nm, self.height_px * self.pixel_size_nm

    def metadata(self) -> dict[str, object]:
        """The facts that are stated, as a table's metadata (`EmitterSet.metadata`)."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        named["checks"] = [asdict(check) for check in self.checks]
        return {name: fact for name, fact in named.items() if fact not in (None, (), [])}


@final
@dataclass(frozen=True, kw_only=True)
class EmitterSet:
    """Molecules in frames, simulated or localized, one row per molecule and frame.

    Positions are in nm, from the outer corner of pixel (0, 0); photons count before quantum
    efficiency.  A set is frozen: every change makes a new one.

    Example:
        >>> molecules = EmitterSet(
        ...     frame=torch.tensor([0, 0, 3]),
        ...     xyz=torch.tensor([[150.0, 220.0, 0.0], [900.0, 410.0, 0.0], [155.0, 218.0, 0.0]]),
        ...     photons=torch.tensor([1200.0, 800.0, 950.0]),
        ... )
        >>> bright = molecules[molecules.photons > 900]
        >>> len(bright), bright.frame.tolist()
        (2, [0, 3])

    Raises:
        ValueError: if the columns differ in length or shape.
    """

    frame: Tensor
    """(n,) int64; frames count from 0"""
    xyz: Tensor
    """(n, 3) nm"""
    photons: Tensor
    """(n,)"""
    background: Tensor | None = None
    """(n,) photons per pixel"""
    probability: Tensor | None = None
    """(n,) probability that the molecule exists"""
    xyz_sigma: Tensor | None = None
    """(n, 3) standard deviations, nm: half-widths of the central 68 % intervals; NaN where an axis
    is not estimated"""
    photons_sigma: Tensor | None = None
    """(n,) standard deviation, photons"""
    xyz_95: Tensor | None = None
    """(n, 3) half-widths of the central 95 % intervals, nm; None: 1.96 times `xyz_sigma`"""
    photons_95: Tensor | None = None
    """(n,) the same, photons"""
    correlation: Tensor | None = None
    """(n, 6) correlations of x and y, x and z, y and z, and of x, y and z with the photons; NaN
    where an axis is not estimated"""
    ess: Tensor | None = None
    """(n,) effective share of the samples of the exact posterior: near 1 the moments are as good as
    those of independent samples, near 0 they are not to be trusted"""
    goodness: Tensor | None = None
    """(n,) deviance of a fit to the frame per degree of freedom: about 1 if it explains the
    light"""
    polished: Tensor | None = None
    """(n,) bool; whether the likelihood of the frames refined the molecule"""
    others: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """(n,) each: further columns of a file, by their names in it; they stay with their rows"""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """`Facts` of the movie, and whatever else the table's file states"""

    def __post_init__(self) -> None:
        n = len(self.frame)
        for name, column in self.columns().items():
            shape = (n, WIDTHS[name]) if name in WIDTHS else (n,)
            if tuple(column.shape) != shape:
                raise ValueError(
                    f"EmitterSet.{name} has shape {tuple(column.shape)}, expected {shape}"
                )
        for name, values in self.others.items():
            if values.shape != (n,):
                raise ValueError(
                    f"EmitterSet.others[{name!r}] has shape {values.shape}, expected {(n,)}"
                )
        if self.frame.dtype.is_floating_point:
            raise ValueError("EmitterSet.frame must hold integers")

    @staticmethod
    def empty(metadata: Mapping[str, object] | None = None) -> EmitterSet:
        """No molecules."""
        nothing = torch.zeros(0)
        frame = torch.zeros(0, dtype=torch.int64)
        return EmitterSet(
            frame=frame, xyz=torch.zeros(0, 3), photons=nothing, metadata=metadata or {}
        )

    @staticmethod
    def cat(sets: Iterable[EmitterSet]) -> EmitterSet:
        """One table from several, in the order given.

        A column that is missing (or None) in one of them is dropped.  Sets without rows are passed
        over, so that an empty chunk costs no column.  Metadata is the first set's.
        """
        everything = list(sets)
        filled = [s for s in everything if len(s)] or everything[:1]
        if not filled:
            return EmitterSet.empty()
        names = [name for name in filled[0].columns() if all(name in s.columns() for s in filled)]
        columns = {name: torch.cat([s.columns()[name] for s in filled]) for name in names}
        kept = [name for name in filled[0].others if all(name in s.others for s in filled)]
        others = {name: np.concatenate([s.others[name] for s in filled]) for name in kept}
        return EmitterSet(**columns, others=others, metadata=everything[0].metadata)

    def columns(self) -> dict[str, Tensor]:
        """The columns that are present, by name; `others` are not among them."""
        named = (
            (f.name, getattr(self, f.name))
            for f in fields(self)
            if f.name not in ("others", "metadata")
        )
        return {name: column for name, column in named if column is not None}

    @property
    def facts(self) -> Facts:
        """Facts of the movie, as far as the metadata state them."""
        return Facts.of(self.metadata)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: Tensor | slice) -> EmitterSet:
        """The rows named by a boolean mask, an index tensor or a slice."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            # a GPU is waited for once, and not for every column
            rows = torch.nonzero(rows)[:, 0]
        rows_of: dict[str, Any] = {name: column[rows] for name, column in self.columns().items()}
        if self.others:
            on_cpu = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
            rows_of["others"] = {name: values[on_cpu] for name, values in self.others.items()}
        return replace(self, **rows_of)

    def to(self, device: torch.device | str) -> EmitterSet:
        """The same table on another device."""
        moved: dict[str, Any] = {name: column.to(device) for name, column in self.columns().items()}
        return replace(self, **moved)

    def sorted_by_frame(self) -> EmitterSet:
        """Rows in the order of their frames; rows of one frame keep their order."""
        return self[torch.argsort(self.frame, stable=True)]


def correlations(matrix: Tensor) -> Tensor:
    """(n, 6) of `PAIRS`, from symmetric matrices (n, 4 or more, 4 or more) of x, y, z, photons and
    others."""
    first, second = torch.tensor(PAIRS, device=matrix.device).T
    return matrix[:, first, second]
