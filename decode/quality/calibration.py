"""CalibrationRecord: whether a posterior is right, by simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from decode.atomic import atomic
from decode.emitters import EmitterSet
from decode.metrics import match, reliability
from decode.network.molecules import MoleculePosterior
from decode.network.record import ModelRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LEVELS", "Calibrated", "CalibrationRecord", "Measured", "sbc_ranks", "tarp"]

QUANTITIES = ("x", "y", "photons", "z")
LEVELS = (0.5, 0.68, 0.9, 0.95)
"""probabilities of the central intervals"""
DRAWS = 63
"""of each molecule, among which the truth is ranked"""
BINS = 16
"""of the histogram of ranks"""
CREDIBILITIES = tuple(i / 20 for i in range(21))
"""of the curves of TARP"""
DISTANT = 2.0
"""standard deviations of the references of TARP from a molecule"""
ENOUGH = 60
"""fewest molecules of a group"""
AROUND_NM = 400.0
"""within which neighbours are counted"""


def sbc_ranks(draws: Tensor, truth: Tensor, rng: torch.Generator) -> Tensor:
    """Ranks of the truth among draws, from 0 to 1: uniform if the draws are of the posterior.

    Simulation-based calibration (Talts et al., arXiv:1804.06788, theorem 1).

    Args:
        draws: (k, n, ...) k independent draws.
        truth: (n, ...).
        rng: breaks the steps of 1 / (k + 1) evenly.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> draws, truth = torch.randn(63, 5000, generator=rng), torch.randn(5000, generator=rng)
        >>> round(float(sbc_ranks(draws, truth, rng).var() * 12), 1)
        1.0
    """
    below = (draws < truth).double().sum(0)
    return (below + torch.rand(below.shape, generator=rng, dtype=torch.float64)) / (len(draws) + 1)


def tarp(draws: Tensor, truth: Tensor, reference: Tensor, rng: torch.Generator) -> Tensor:
    """Credibility of the region around a reference on whose border the truth lies: uniform from 0
    to 1 if the draws are of the posterior, in all dimensions jointly.

    Tests of accuracy with random points (Lemos et al., ICML 2023, arXiv:2302.03026, theorem 3).

    Args:
        draws: (k, n, d) k independent draws.
        truth: (n, d).
        reference: (n, d) points chosen without the truth.
        rng: breaks the steps of 1 / (k + 1) evenly.

    Returns:
        (n,)
    """
    return sbc_ranks((draws - reference).norm(dim=-1), (truth - reference).norm(dim=-1), rng)


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """Listed molecules of simulated movies, against the truth."""

    probability: Tensor
    """(m,) of all that are listed"""
    true: Tensor
    """(m,) bool; which are true molecules"""
    ranks: Tensor
    """(n, 4) of x, y, photons and z of pairs"""
    joint: Tensor
    """(n,) of all together"""
    within: Tensor
    """(n, 4, 2) bool; whether the truth is within the stated 68 % and 95 % intervals of a table"""
    photons: Tensor
    """(n, 2) stated and true"""
    around: Tensor
    """(n,) listed molecules within 400 nm"""
    z_nm: Tensor
    """(n,) stated"""
    counts: Tensor
    """(f, 3) of each frame: the true number, the expected one, and the probability of fewer, with
    half of that of as many"""

    @staticmethod
    def of(
        molecules: MoleculePosterior,
        truth: EmitterSet,
        *,
        pixel_size_nm: float,
        border_nm: float,
        two_d: bool,
        threshold: float = 0.5,
        seed: int = 0,
    ) -> Measured:
        """Compare molecules with the truth.

        Args:
            molecules: of some frames, with corrections.
            truth: all true molecules of these frames.
            pixel_size_nm: side of a pixel.
            border_nm: width of the border whose molecules are left out.
            two_d: leave z out.
            threshold: smallest probability that is listed.
            seed: of draws and references.
        """
        rng = torch.Generator().manual_seed(seed)
        listed = molecules.above(threshold)
        table = listed.table()
        assert table.probability is not None
        assert table.xyz_sigma is not None
        assert table.photons_sigma is not None
        pairs = match(truth, table, two_d=two_d)
        true = torch.zeros(len(table), dtype=torch.bool)
        true[pairs[:, 1]] = True
        _, height, width = molecules.shape
        far = torch.tensor([width, height]) * pixel_size_nm - border_nm
        inner = ((table.xyz[:, :2] > border_nm) & (table.xyz[:, :2] < far)).all(1)
        pairs = pairs[inner[pairs[:, 1]]]
        own = pairs[:, 1]
        every = _existing(listed)
        drawn = torch.stack([_values(every.sample(rng))[own] for _ in range(DRAWS)])
        values, known = _values(table)[own], _values(truth)[pairs[:, 0]]
        sigma = _by_quantity(table.xyz_sigma, table.photons_sigma)[own]
        axes = [0, 1, 2] if two_d else [0, 1, 2, 3]
        distance = torch.randn(values.shape, generator=rng, dtype=torch.float64)
        reference = (values + DISTANT * sigma * distance)[:, axes] / sigma[:, axes]
        return Measured(
            probability=table.probability[inner],
            true=true[inner],
            ranks=sbc_ranks(drawn, known, rng),
            joint=tarp(
                drawn[..., axes] / sigma[:, axes], known[:, axes] / sigma[:, axes], reference, rng
            ),
            within=_within(table[own], (values - known).abs()),
            photons=torch.stack([values[:, 2], known[:, 2]], 1),
            around=_neighbours(table)[own],
            z_nm=values[:, 3],
            counts=_counts(molecules, truth),
        )


def _existing(molecules: MoleculePosterior) -> MoleculePosterior:
    """The same molecules, of which a draw holds each."""
    sure = torch.ones_like(molecules.probability)
    return replace(molecules, probability=sure, spread=None)


def _by_quantity(xyz: Tensor, photons: Tensor) -> Tensor:
    """(n, 4) x, y, photons and z."""
    return torch.cat([xyz[:, :2], photons[:, None], xyz[:, 2:]], 1).double()


def _values(emitters: EmitterSet) -> Tensor:
    return _by_quantity(emitters.xyz, emitters.photons)


def _within(table: EmitterSet, error: Tensor) -> Tensor:
    """(n, 4, 2) whether errors are within the intervals of a table."""
    assert table.xyz_sigma is not None
    assert table.photons_sigma is not None
    sigma = _by_quantity(table.xyz_sigma, table.photons_sigma)
    half_95 = 1.96 * sigma
    if table.xyz_95 is not None and table.photons_95 is not None:
        half_95 = _by_quantity(table.xyz_95, table.photons_95)
    return torch.stack([error < sigma, error < half_95], 2)


def _neighbours(table: EmitterSet) -> Tensor:
    """(n,) number of others within `AROUND_NM`."""
    if len(table) == 0:
        return torch.zeros(0, dtype=torch.float64)
    xy, apart = table.xyz[:, :2].double(), 1e5 * table.frame.double()
    laid_out = torch.cat([xy, apart[:, None]], 1)
    return ((torch.cdist(laid_out, laid_out) < AROUND_NM).sum(1) - 1).double()


def _counts(molecules: MoleculePosterior, truth: EmitterSet) -> Tensor:
    """(f, 3) as `Measured.counts`."""
    counts = molecules.counts()
    number = torch.bincount(truth.frame, minlength=counts.n_frames)
    return torch.stack([number.double(), counts.mean, counts.rank(number)], 1)


@final
@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Calibration of one group of molecules."""

    group: str
    n: int
    """number of pairs"""
    covered: Mapping[str, tuple[float, ...]]
    """by quantity: share of true values within the central intervals of `LEVELS` of draws"""
    table: Mapping[str, tuple[float, float]]
    """by quantity: share within the 68 % and 95 % intervals that a table states"""
    ranks: Mapping[str, tuple[int, ...]]
    """by quantity: histogram of the ranks of the truth"""
    tarp: float
    """largest difference of expected coverage and credibility of the joint posterior"""
    photons_bias: float
    """mean of stated minus true photons, over the mean of the true ones"""


@final
@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The calibration of a model on simulations of its own recipe.

    Groups are by what is stated, as thirds of the number of neighbours, of photons and of z: a
    posterior is calibrated given the data, and not given the truth.
    """

    n_frames: int
    n_listed: int
    expected_error: float
    """expected calibration error of the probability (Guo et al., ICML 2017, eq. 3)"""
    bins: tuple[tuple[int, float, float], ...]
    """number, mean stated probability, and share of true molecules, in tenths"""
    counted: float
    """expected over true number of molecules"""
    counts_95: float
    """share of frames whose number is within its central 95 % interval"""
    curve: tuple[float, ...]
    """expected coverage of the joint posterior (TARP) at `CREDIBILITIES`"""
    groups: tuple[Calibrated, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)
    """entries of other versions of decode"""

    @staticmethod
    def of(parts: Sequence[Measured], *, two_d: bool) -> CalibrationRecord:
        """From simulated movies."""
        every = _joined(parts)
        stated = reliability(every.probability.double(), every.true)
        number, expected, below = every.counts.T
        whole = torch.ones(len(every.joint), dtype=torch.bool)
        groups = {"all": whole}
        sorted_by = {"neighbours": every.around, "photons": every.photons[:, 0]}
        if not two_d:
            sorted_by["z"] = every.z_nm
        for name, value in sorted_by.items():
            for third, rows in zip(("low", "middle", "high"), _thirds(value), strict=True):
                groups[f"{name}, {third}"] = rows
        return CalibrationRecord(
            n_frames=len(number),
            n_listed=len(every.true),
            expected_error=0.0 if stated is None else stated.expected_error,
            bins=() if stated is None else stated.bins,
            counted=float(expected.sum() / number.sum().clamp_min(1)),
            counts_95=float(((below - 0.5).abs() < 0.475).double().mean()),
            curve=_curve(every.joint),
            groups=tuple(
                _calibrated(every, name, rows, two_d=two_d)
                for name, rows in groups.items()
                if int(rows.sum()) >= ENOUGH
            ),
        )

    @classmethod
    def of_model(cls, record: ModelRecord) -> CalibrationRecord:
        """The calibration of a model.

        Raises:
            ValueError: if it was not calibrated.
        """
        if record.calibration is None:
            raise ValueError("the model was not calibrated: do it with `decode calibrate model`")
        return cls.of_json(record.calibration)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> CalibrationRecord:
        """The inverse of `to_json`.

        Raises:
            ValueError: if a value is missing.
        """
        try:
            groups = tuple(Calibrated(**group) for group in content["groups"])
            return cls(**{**content, "groups": groups})
        except (KeyError, TypeError) as error:
            raise ValueError("the model's calibration is of another version of decode") from error

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        content = _rounded(asdict(self))
        content.pop("others")
        return dict(content)

    def lines(self) -> Iterator[str]:
        """The figures as text."""
        yield (
            f"  calibration on {self.n_frames} simulated frames: probability off by "
            f"{self.expected_error:.3f}, {self.counted:.2f} times the true number expected, "
            f"{self.counts_95:.2f} of frames within the 95 % interval of their number"
        )
        if not self.groups:
            return
        names = "".join(f"{name:>14}" for name in self.groups[0].table)
        yield f"  {'errors within 68 % / 95 %':26}{'n':>8}{names}{'TARP':>8}{'photons':>9}"
        for group in self.groups:
            shares = "".join(f"   {a:.3f}/{b:.3f}" for a, b in group.table.values())
            yield (
                f"  {group.group:26}{group.n:>8}{shares}{group.tarp:>8.3f}"
                f"{group.photons_bias:>+9.3f}"
            )

    def picture(self, path: Path | str) -> None:
        """Ranks with their band, coverage, reliability and TARP as a picture (PNG).

        Raises:
            ValueError: if there were too few molecules.
            OSError: if it cannot be written.
        """
        if not self.groups:
            raise ValueError("the model found too few molecules of its simulations to draw them")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        every = self.groups[0]
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3)
        axes[0, 0].set_title("ranks of the truth among draws", fontsize=9)
        _ranks(axes[0, 0], every, ("x", "y"))
        _ranks(axes[0, 1], every, ("photons",))
        if "z" in every.ranks:
            _ranks(axes[0, 2], every, ("z",))
        else:
            axes[0, 2].set_axis_off()
        levels = axes[1, 0]
        for name, shares in every.covered.items():
            levels.plot(LEVELS, shares, "o-", label=name, markersize=4)
        _diagonal(levels, "probability of the interval", "share of errors within")
        levels.legend(frameon=False)
        probability = axes[1, 1]
        probability.plot([p for _, p, _ in self.bins], [f for *_, f in self.bins], "o-")
        _diagonal(probability, "stated probability", "share of true molecules")
        axes[1, 2].plot(CREDIBILITIES, self.curve)
        _diagonal(axes[1, 2], "credibility (TARP, all jointly)", "expected coverage")
        with atomic(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=130)


def _joined(parts: Sequence[Measured]) -> Measured:
    """Several, one after the other."""
    names = [f.name for f in fields(Measured)]
    return Measured(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def _thirds(values: Tensor) -> list[Tensor]:
    """Rows of about equal number by the order of their values."""
    third = torch.empty_like(values, dtype=torch.int64)
    third[values.argsort()] = 3 * torch.arange(len(values)) // max(1, len(values))
    return [third == i for i in range(3)]


def _curve(joint: Tensor) -> tuple[float, ...]:
    if not len(joint):
        return ()
    return tuple(float((joint <= level).double().mean()) for level in CREDIBILITIES)


def _calibrated(every: Measured, group: str, rows: Tensor, *, two_d: bool) -> Calibrated:
    names = QUANTITIES[:3] if two_d else QUANTITIES
    ranks, within = every.ranks[rows], every.within[rows].double().mean(0)
    apart = (2 * ranks - 1).abs()
    stated, known = every.photons[rows].mean(0)
    curve = torch.tensor(_curve(every.joint[rows])) - torch.tensor(CREDIBILITIES)
    histograms = [torch.histc(ranks[:, i], BINS, 0, 1).long() for i in range(len(names))]
    return Calibrated(
        group=group,
        n=int(rows.sum()),
        covered={
            name: tuple(float((apart[:, i] < level).double().mean()) for level in LEVELS)
            for i, name in enumerate(names)
        },
        table={name: (float(within[i, 0]), float(within[i, 1])) for i, name in enumerate(names)},
        ranks={name: tuple(histograms[i].tolist()) for i, name in enumerate(names)},
        tarp=float(curve.abs().max()),
        photons_bias=float((stated - known) / known),
    )


def _rounded(value: Any) -> Any:
    """Plain values with four decimals, which is what they are known to."""
    if isinstance(value, Mapping):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def _ranks(axes: Axes, group: Calibrated, names: Sequence[str]) -> None:
    """Histograms of ranks, and the band in which 99 % of the bins of uniform ranks lie."""
    expected = group.n / BINS
    band = 2.576 * math.sqrt(expected * (1 - 1 / BINS))
    axes.axhspan(1 - band / expected, 1 + band / expected, color="0.85")
    for name in names:
        shares = [count / expected for count in group.ranks[name]]
        axes.stairs(shares, [i / BINS for i in range(BINS + 1)], label=name)
    axes.set(ylim=(0, 2), xlabel="rank", ylabel="over a uniform one")
    axes.legend(frameon=False)


def _diagonal(axes: Axes, x: str, y: str) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y)
