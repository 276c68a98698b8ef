"""Scores of predicted molecules: the rules of the SMLM Challenge 2016, and calibrated sigmas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from torch import Tensor

from decode.emitters import EmitterSet

__all__ = [
    "Calibration",
    "Errors",
    "Reliability",
    "Score",
    "Uncertainties",
    "calibration",
    "coverage",
    "match",
    "normalized_errors",
    "reliability",
    "score",
]

FORBIDDEN = 1e6
"""cost of a molecule without a partner; so large that as many pairs as possible are formed"""
ENOUGH = 20
"""fewest pairs from which errors are summarized"""
ISOLATED_NM = 1000.0
"""lateral distance within which an isolated molecule is alone in its frame"""
ONE_SIGMA = math.erf(math.sqrt(0.5))
NORMAL_95 = 1.959963984540054
"""half-width of the central 95 % interval of a standard normal distribution"""
NORMAL_MEDIAN = 0.6744897501960817
"""median of the absolute value of a standard normal variate"""


@final
@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of one quantity against its stated standard deviation (sigma), in nm or photons."""

    n: int
    """number of pairs"""
    bias: float
    """mean of estimate minus truth"""
    bias_error: float
    """standard error of the bias"""
    over_sigma_rms: float
    """root mean square of error over sigma; 1 for calibrated sigmas"""
    over_sigma_robust: float
    """median of abs(error) over sigma, over that of a standard normal; insensitive to outliers"""
    coverage_68: float
    """share of errors in the central 68.27 % interval of a normal distribution"""
    coverage_95: float
    """share of errors in the stated 95 % interval, or else in that of a normal distribution"""

    @staticmethod
    def of(error: Tensor, sigma: Tensor, half_95: Tensor | None = None) -> Errors | None:
        """From (n,) errors, their stated sigmas, and half-widths of 95 % intervals (None: 1.96
        sigma); None for fewer than 20."""
        known = error.isfinite() & sigma.isfinite() & (sigma > 0)
        half = NORMAL_95 * sigma if half_95 is None else half_95
        error, sigma, half = (values[known].double() for values in (error, sigma, half))
        n = len(error)
        if n < ENOUGH:
            return None
        z = (error / sigma)[:, None]
        return Errors(
            n=n,
            bias=float(error.mean()),
            bias_error=float(error.std()) / math.sqrt(n),
            over_sigma_rms=float(z.square().mean().sqrt()),
            over_sigma_robust=float(z.abs().median() / NORMAL_MEDIAN),
            coverage_68=float(coverage(z, ONE_SIGMA)),
            coverage_95=float((error.abs() < half).double().mean()),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Uncertainties:
    """Errors of each quantity; None where the table states no sigma, or for fewer than 20 pairs."""

    x: Errors | None = None
    y: Errors | None = None
    z: Errors | None = None
    photons: Errors | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often localizations of a stated probability are true molecules."""

    expected_error: float
    """expected calibration error: mean of abs(frequency - probability) over the localizations"""
    bins: tuple[tuple[int, float, float], ...]
    """(number, mean stated probability, frequency of true molecules) in tenths of probability"""


@final
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether stated uncertainties and probabilities are right."""

    every: Uncertainties
    isolated: Uncertainties | None
    """errors of molecules that are alone within 1 um in their frame; None for fewer than 20"""
    crowded: Uncertainties | None
    """errors of all other molecules; None for fewer than 20"""
    reliability: Reliability | None
    """reliability of probabilities; None where the table states none"""

    def lines(self) -> Iterator[str]:
        """The figures as text: a table of the errors, and one of the probabilities."""
        named = {"all": self.every, "isolated": self.isolated, "crowded": self.crowded}
        rows = [
            f"{name:9}{quantity:8}{e.n:7d}{e.bias:+10.2f} +- {e.bias_error:<7.2f}"
            f"{e.over_sigma_rms:9.2f}{e.over_sigma_robust:8.2f}"
            f"{e.coverage_68:8.3f}{e.coverage_95:8.3f}"
            for name, part in named.items()
            if part is not None
            for quantity, e in vars(part).items()
            if e is not None
        ]
        if rows:
            title = f"{'errors':17}{'pairs':>7}{'bias':>10}{'':11}"
            yield f"{title}{'rms/sigma':>9}{'robust':>8}{'in 68%':>8}{'in 95%':>8}"
            yield from rows
        if self.reliability is not None:
            yield f"probabilities: expected calibration error {self.reliability.expected_error:.3f}"
            for n, stated, frequency in self.reliability.bins:
                yield f"  stated {stated:.3f}, true {frequency:.3f} of {n}"


@final
@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of the SMLM Challenge 2016; NaN where there is no pair.

    Sage et al., Nature Methods 16, 387, 2019.
    """

    tp: int
    """true molecules that were found"""
    fp: int
    """localizations without a true molecule"""
    fn: int
    """true molecules that were missed"""
    jaccard: float
    """tp / (tp + fp + fn)"""
    precision: float
    """tp / (tp + fp)"""
    recall: float
    """tp / (tp + fn)"""
    rmse_lateral_nm: float
    """root mean square of the distance in the plane"""
    rmse_axial_nm: float
    median_lateral_nm: float
    median_axial_nm: float
    efficiency_lateral: float
    """100 - sqrt((100 - 100 jaccard)^2 + (rmse_lateral_nm * 1/nm)^2)"""
    efficiency_3d: float
    """mean of the lateral efficiency and the axial one (with 0.5/nm); NaN in 2D"""
    shift_nm: tuple[float, float, float]
    """(x, y, z) offset that was subtracted from the predicted positions before scoring"""
    calibration: Calibration | None = None
    """calibration of stated uncertainties and probabilities, if requested (`decode.evaluate`)"""


def match(
    truth: EmitterSet,
    prediction: EmitterSet,
    *,
    lateral_nm: float = 250.0,
    axial_nm: float = 500.0,
    two_d: bool = False,
) -> Tensor:
    """Pair predicted with true molecules, frame by frame.

    Among the pairings with as many pairs as possible, it takes that of the least total distance.
    Pairs are at most `lateral_nm` apart in the plane and `axial_nm` in depth; in 2D, z is ignored.

    Returns:
        (pairs, 2) int64 on the CPU: rows of truth and of prediction.
    """
    true_xyz, predicted_xyz = _positions(truth), _positions(prediction)
    candidates = _neighbours(truth, true_xyz, prediction, predicted_xyz, lateral_nm)
    difference = predicted_xyz[candidates[:, 1]] - true_xyz[candidates[:, 0]]
    lateral, axial = np.hypot(difference[:, 0], difference[:, 1]), np.abs(difference[:, 2])
    allowed = (lateral <= lateral_nm) & (two_d | (axial <= axial_nm))
    cost = (lateral if two_d else np.hypot(lateral, axial))[allowed]
    return torch.from_numpy(_assign(candidates[allowed], cost, len(truth), len(prediction)))


def score(
    truth: EmitterSet,
    prediction: EmitterSet,
    *,
    field_nm: tuple[float, float],
    two_d: bool = False,
    min_photons: float = 0.0,
    border_nm: float = 450.0,
    remove_shift: bool = False,
    lateral_nm: float = 250.0,
    axial_nm: float = 500.0,
) -> Score:
    """Compare a table with the truth by the rules of the SMLM Challenge 2016.

    A true molecule counts if it has `min_photons` and lies more than `border_nm` from the edge of
    the field.  A localization inside that border is a false positive unless it is paired with any
    true molecule, dim ones and those of the border included.

    Example:
        >>> truth = EmitterSet(
        ...     frame=torch.tensor([0, 0]),
        ...     xyz=torch.tensor([[1000.0, 1000.0, 0.0], [2000.0, 2000.0, 0.0]]),
        ...     photons=torch.tensor([1000.0, 1000.0]),
        ... )
        >>> found = EmitterSet(
        ...     frame=torch.tensor([0]),
        ...     xyz=torch.tensor([[1030.0, 1040.0, 0.0]]),
        ...     photons=torch.tensor([900.0]),
        ... )
        >>> result = score(truth, found, field_nm=(3000.0, 3000.0), two_d=True)
        >>> result.jaccard, result.rmse_lateral_nm
        (0.5, 50.0)

    Args:
        truth: true molecules.
        prediction: localizations of the same frames.
        field_nm: (x, y) size of the field of view.
        two_d: leave z out of matching.
        min_photons: true molecules below it need not be found.
        border_nm: width of the frame around the field that is left out.
        remove_shift: first subtract a constant offset, the median difference of matched pairs, in
            two passes of at most 200 nm each.
        lateral_nm, axial_nm: tolerances of `match`.

    Returns:
        Counts, errors in nm and efficiencies; NaN where there is no pair to tell.

    Raises:
        ValueError: if a table holds numbers that are not finite.
    """
    tolerances: dict[str, Any] = {"lateral_nm": lateral_nm, "axial_nm": axial_nm, "two_d": two_d}
    shift = np.zeros(3)
    if remove_shift:
        for _ in range(2):
            pairs = match(truth, prediction, **tolerances)
            if len(pairs) < 20:
                break
            step = np.clip(np.median(_differences(truth, prediction, pairs), 0), -200, 200)
            step[2] = 0 if two_d else step[2]
            prediction = replace(prediction, xyz=prediction.xyz.double() - torch.from_numpy(step))
            shift += step

    pairs = match(truth, prediction, **tolerances)
    counted = _inside(truth, field_nm, border_nm) & (truth.photons >= min_photons)
    paired = torch.zeros(len(prediction), dtype=torch.bool)
    paired[pairs[:, 1]] = True
    found = pairs[counted[pairs[:, 0]]]
    tp = len(found)
    fn = int(counted.sum()) - tp
    fp = int((_inside(prediction, field_nm, border_nm) & ~paired).sum())
    jaccard = tp / max(1, tp + fp + fn)

    difference = _differences(truth, prediction, found)
    lateral, axial = np.hypot(difference[:, 0], difference[:, 1]), np.abs(difference[:, 2])
    rmse_lateral, rmse_axial = _root_mean_square(lateral), _root_mean_square(axial)
    efficiency_lateral, efficiency_3d = _efficiency(jaccard, rmse_lateral), math.nan
    if not two_d:
        efficiency_3d = (efficiency_lateral + _efficiency(jaccard, rmse_axial / 2)) / 2
    return Score(
        tp=tp,
        fp=fp,
        fn=fn,
        jaccard=jaccard,
        precision=tp / max(1, tp + fp),
        recall=tp / max(1, tp + fn),
        rmse_lateral_nm=rmse_lateral,
        rmse_axial_nm=rmse_axial,
        median_lateral_nm=float(np.median(lateral)) if tp else math.nan,
        median_axial_nm=float(np.median(axial)) if tp else math.nan,
        efficiency_lateral=efficiency_lateral,
        efficiency_3d=efficiency_3d,
        shift_nm=(float(shift[0]), float(shift[1]), float(shift[2])),
    )


def normalized_errors(truth: EmitterSet, prediction: EmitterSet, pairs: Tensor) -> Tensor:
    """(estimate - truth) / sigma of matched pairs: standard normal where sigmas are calibrated.

    Args:
        truth, prediction: the tables; `prediction` states `xyz_sigma`.
        pairs: (pairs, 2) rows, as from `match`.

    Returns:
        (pairs, 3) float64, x, y, z; NaN where an axis is not estimated.

    Raises:
        ValueError: if the prediction states no sigmas.
    """
    if prediction.xyz_sigma is None:
        raise ValueError("the table states no uncertainties, so none can be checked")
    sigma = prediction.xyz_sigma.double().cpu()[pairs[:, 1]]
    return torch.from_numpy(_differences(truth, prediction, pairs)) / sigma


def coverage(errors: Tensor, level: float) -> Tensor:
    """Share of normalized errors in the central interval of a standard normal of this level.

    Args:
        errors: (pairs, 3) from `normalized_errors`.
        level: in (0, 1); with calibrated sigmas the result equals it.

    Returns:
        (3,) for x, y, z; NaN where an axis is not estimated.
    """
    half_width = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    inside = (errors.abs() <= half_width).double()
    return torch.where(errors.isnan(), torch.nan, inside).nanmean(0)


def calibration(
    truth: EmitterSet,
    prediction: EmitterSet,
    *,
    field_nm: tuple[float, float],
    two_d: bool = False,
    min_photons: float = 0.0,
    border_nm: float = 450.0,
) -> Calibration:
    """Compare the errors of a table with the uncertainties that it states.

    Pairs are those that `score` counts; z is left out in 2D.  A pair is at most 250 nm apart, which
    cuts off the largest errors of a table whose sigmas are near to that.

    Args:
        truth: true molecules, with their photons.
        prediction: localizations of the same frames.
        field_nm, two_d, min_photons, border_nm: as `score` takes them.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> truth = EmitterSet(
        ...     frame=torch.arange(1000),
        ...     xyz=torch.full((1000, 3), 1500.0, dtype=torch.float64),
        ...     photons=torch.full((1000,), 900.0),
        ... )
        >>> found = replace(
        ...     truth,
        ...     xyz=truth.xyz + 10 * torch.randn(1000, 3, generator=rng),
        ...     xyz_sigma=torch.full((1000, 3), 10.0),
        ... )
        >>> result = calibration(truth, found, field_nm=(3000.0, 3000.0), two_d=True)
        >>> assert result.every.x is not None
        >>> round(result.every.x.over_sigma_rms, 1), round(result.every.x.coverage_95, 2)
        (1.0, 0.95)
    """
    pairs = match(truth, prediction, two_d=two_d)
    counted = _inside(truth, field_nm, border_nm) & (truth.photons >= min_photons)
    found = pairs[counted.cpu()[pairs[:, 0]]]
    alone = _isolated(truth)[found[:, 0]]
    parts = (found[alone], found[~alone])
    isolated, crowded = (
        _uncertainties(truth, prediction, part, two_d=two_d) if len(part) >= ENOUGH else None
        for part in parts
    )
    stated = None
    if prediction.probability is not None:
        paired = torch.zeros(len(prediction), dtype=torch.bool)
        paired[pairs[:, 1]] = True
        judged = _inside(prediction, field_nm, border_nm).cpu()
        stated = reliability(prediction.probability.cpu()[judged], paired[judged])
    return Calibration(
        every=_uncertainties(truth, prediction, found, two_d=two_d),
        isolated=isolated,
        crowded=crowded,
        reliability=stated,
    )


def reliability(probability: Tensor, true: Tensor) -> Reliability | None:
    """Compare stated probabilities with frequencies, in tenths of the probability.

    Guo et al., On calibration of modern neural networks, ICML 2017, eq. 3.

    Args:
        probability: (n,) in [0, 1].
        true: (n,) bool; which localizations are true molecules.

    Returns:
        None if there is nothing to compare.
    """
    if not len(probability):
        return None
    p, hit = probability.double(), true.double()
    tenth = (p * 10).long().clamp(0, 9)
    bins = tuple(
        (int(chosen.sum()), float(p[chosen].mean()), float(hit[chosen].mean()))
        for chosen in (tenth == i for i in range(10))
        if chosen.any()
    )
    error = sum(n * abs(stated - frequency) for n, stated, frequency in bins) / len(p)
    return Reliability(expected_error=error, bins=bins)


def _uncertainties(
    truth: EmitterSet, prediction: EmitterSet, pairs: Tensor, *, two_d: bool
) -> Uncertainties:
    """Errors of matched pairs, by quantity."""
    stated: dict[str, Errors | None] = {}
    if prediction.xyz_sigma is not None:
        error = torch.from_numpy(_differences(truth, prediction, pairs))
        sigma = prediction.xyz_sigma.cpu()[pairs[:, 1]]
        half = None if prediction.xyz_95 is None else prediction.xyz_95.cpu()[pairs[:, 1]]
        axes = "xy" if two_d else "xyz"
        stated |= {
            axis: Errors.of(error[:, i], sigma[:, i], None if half is None else half[:, i])
            for i, axis in enumerate(axes)
        }
    if prediction.photons_sigma is not None:
        light = prediction.photons.cpu()[pairs[:, 1]] - truth.photons.cpu()[pairs[:, 0]]
        sigma = prediction.photons_sigma.cpu()[pairs[:, 1]]
        half = None if prediction.photons_95 is None else prediction.photons_95.cpu()[pairs[:, 1]]
        stated["photons"] = Errors.of(light, sigma, half)
    return Uncertainties(**stated)


def _isolated(truth: EmitterSet) -> Tensor:
    """(n,) bool; which molecules are alone within `ISOLATED_NM`."""
    xyz = _positions(truth)
    near = _neighbours(truth, xyz, truth, xyz, ISOLATED_NM)
    return torch.from_numpy(np.bincount(near[:, 0], minlength=len(truth)) == 1)


def _positions(emitters: EmitterSet) -> npt.NDArray[np.float64]:
    xyz: npt.NDArray[np.float64] = emitters.xyz.detach().double().cpu().numpy()
    return xyz


def _differences(
    truth: EmitterSet, prediction: EmitterSet, pairs: Tensor
) -> npt.NDArray[np.float64]:
    """Estimate minus truth, (pairs, 3) nm."""
    estimate = _positions(prediction)[pairs[:, 1].numpy()]
    true = _positions(truth)[pairs[:, 0].numpy()]
    return np.subtract(estimate, true)


def _inside(emitters: EmitterSet, field_nm: tuple[float, float], border_nm: float) -> Tensor:
    x, y = emitters.xyz[:, 0], emitters.xyz[:, 1]
    width, height = field_nm
    return (x > border_nm) & (x < width - border_nm) & (y > border_nm) & (y < height - border_nm)


def _root_mean_square(values: npt.NDArray[np.float64]) -> float:
    return math.sqrt(np.mean(values**2)) if len(values) else math.nan


def _efficiency(jaccard: float, scaled_rmse: float) -> float:
    return 100 - math.sqrt((100 - 100 * jaccard) ** 2 + scaled_rmse**2)


def _neighbours(
    truth: EmitterSet,
    true_xyz: npt.NDArray[np.float64],
    prediction: EmitterSet,
    predicted_xyz: npt.NDArray[np.float64],
    radius: float,
) -> npt.NDArray[np.int64]:
    """(candidates, 2) rows of the same frame within the radius, and a few slightly beyond it."""
    if len(truth) == 0 or len(prediction) == 0:
        return np.zeros((0, 2), np.int64)
    radius *= 1 + 1e-9
    # frames lie apart along a third axis, so that one tree serves them all
    true_tree, predicted_tree = (
        # a balanced tree of ties overflows the stack where denormal numbers are flushed (SciPy
        # 1.17)
        cKDTree(
            np.column_stack([xyz[:, :2], emitters.frame.cpu().numpy() * (4 * radius + 1)]),
            balanced_tree=False,
        )
        for emitters, xyz in ((truth, true_xyz), (prediction, predicted_xyz))
    )
    near = true_tree.sparse_distance_matrix(predicted_tree, radius, output_type="ndarray")
    return np.column_stack([near["i"], near["j"]]).astype(np.int64)


def _assign(
    candidates: npt.NDArray[np.int64],
    cost: npt.NDArray[np.float64],
    n_truth: int,
    n_prediction: int,
) -> npt.NDArray[np.int64]:
    """The cheapest of the largest assignments, by groups of candidates that share a molecule."""
    size = n_truth + n_prediction
    graph = coo_array(
        (np.ones(len(cost)), (candidates[:, 0], candidates[:, 1] + n_truth)), shape=(size, size)
    )
    _, group = connected_components(graph.tocsr(), directed=False)
    group = group[candidates[:, 0]]
    order = np.argsort(group, kind="stable")
    _, first, n_candidates = np.unique(group[order], return_index=True, return_counts=True)
    chosen: list[npt.NDArray[np.int64]] = [order[first[n_candidates == 1]]]
    for start, count in zip(first[n_candidates > 1], n_candidates[n_candidates > 1], strict=True):
        members = order[start : start + count]
        rows, row = np.unique(candidates[members, 0], return_inverse=True)
        columns, column = np.unique(candidates[members, 1], return_inverse=True)
        # every row may also take a column of its own, and has no partner then
        alone = np.arange(len(rows))
        ends = np.concatenate([row, alone]), np.concatenate([column, len(columns) + alone])
        # an entry of 0 is none
        price = np.concatenate([cost[members], np.full(len(rows), FORBIDDEN)]) + 1
        _, mate = min_weight_full_bipartite_matching(csr_array((price, ends)))
        chosen.append(members[mate[row] == column])
    pairs: npt.NDArray[np.int64] = candidates[np.sort(np.concatenate(chosen))]
    return pairs
