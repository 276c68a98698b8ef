"""Recalibration: stated probabilities, uncertainties and photons against those of simulations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from decode.network.counts import Counts

__all__ = [
    "LISTED",
    "QUANTITIES",
    "Corrected",
    "Judge",
    "Numbers",
    "Recalibration",
    "Stated",
    "log_ratio",
    "quantiles",
]

Judge: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""pairs n molecules with the truth, first those of which an (n,) bool says that they are listed;
returns (n,) bool, which are true, and (n, 4) estimate minus truth by `QUANTITIES`, or NaN"""

QUANTITIES = ("x", "y", "photons", "z")
"""in the order of columns"""
LEVELS = (0.6826894921370859, 0.95)
"""probabilities of the two central intervals"""
NORMAL_95 = 1.959963984540054
"""half-width of the central 95 % interval of a standard normal distribution"""
LISTED = 0.5
"""probability above which the network lists a molecule"""
ENOUGH = 400
"""fewest pairs that uncertainties are fitted to, and fewest molecules, true and false ones, that
probabilities are"""
RIDGE = 1e-4
"""penalty of a coefficient's square, per molecule, for features of unit variance"""
LARGEST = math.log(4.0)
"""of the logarithm of a factor"""
TAILS = (-0.1, 0.6)
"""of the parameter h of draws"""
ALONE = 1.0
"""expected number of neighbours below which molecules are of about the same weight"""
RARE, KEPT = 0.02, 10
"""below this probability, one molecule in so many is fitted, and counts for all"""
REACH_OF_CROWDS_PX = 16
"""half the side of the square whose density of molecules counts"""
ROWS_AT_ONCE = 50_000
NEWTON_STEPS, MAJORIZATIONS, SETTLED = 20, 60, 1e-3
"""most steps, and the change of scaled coefficients below which a regression has settled"""
CROWD = 10.0
"""expected number in 9 x 9 pixels where half of `crowded` counts"""
SPREADS = torch.linspace(0.0, 2.0, 21, dtype=torch.float64)
"""that are tried"""


@final
@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a posterior states of n molecules, all float64."""

    probability: Tensor
    """(n,)"""
    beside: Tensor
    """(n,) expected number of other molecules in the pixel and the eight around it"""
    around: Tensor
    """(n,) the same in the rest of the 9 x 9 pixels: 400 nm, for pixels of 100"""
    density: Tensor
    """(n,) the same per pixel of the rest of the 33 x 33 pixels"""
    light_beside: Tensor
    """(n,) expected photons of the others in the 5 x 5 pixels"""
    mean: Tensor
    """(n, 4) by `QUANTITIES`; nm and photons"""
    sigma: Tensor
    """(n, 4)"""
    background: Tensor
    """(n,) photons per pixel"""
    pixel_size_nm: float

    def __len__(self) -> int:
        return len(self.probability)

    def __getitem__(self, rows: Tensor) -> Stated:
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v[rows] for k, v in columns.items() if isinstance(v, Tensor)}
        return replace(self, **chosen)

    def to(self, device: torch.device | str) -> Stated:
        """The same on another device."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in columns.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)

    @staticmethod
    def cat(parts: Sequence[Stated]) -> Stated:
        """Several, one after the other, with the pixel size of the first."""
        columns = [{f.name: getattr(part, f.name) for f in fields(part)} for part in parts]
        joined: dict[str, Any] = {
            name: torch.cat([c[name] for c in columns])
            for name, value in columns[0].items()
            if isinstance(value, Tensor)
        }
        return replace(parts[0], **joined)

    def split(self, rows: int) -> Iterator[Stated]:
        """Parts of so many molecules."""
        return (self[part] for part in torch.arange(len(self)).split(rows))

    @property
    def crowd(self) -> Tensor:
        """(n,) from 0, where a molecule is alone, to 1, where many are in the 9 x 9 pixels."""
        number = self.probability + self.beside + self.around
        return number**3 / (number**3 + CROWD**3)

    @property
    def weight(self) -> Tensor:
        """(n,) in a fit: crowded movies hold most of the molecules, and are not what most users
        record."""
        return 1 / (ALONE + self.around + 81 * self.density)

    def features(self) -> Tensor:
        """(n, `N_FEATURES`): log odds, crowding near and far, share of the light, signal,
        precision, depth and background."""
        p = self.probability.clamp(1e-6, 1 - 1e-6)
        photons, light_sigma = self.mean[:, 2].clamp_min(1.0), self.sigma[:, 2].clamp_min(1e-3)
        lateral = self.sigma[:, :2].square().mean(1).sqrt() / self.pixel_size_nm
        axial = self.sigma[:, 3] / self.pixel_size_nm
        return torch.stack(
            [
                torch.logit(p),
                self.beside / (self.beside + 0.3),
                torch.log1p(self.around),
                torch.log1p(1000 * self.density),
                self.light_beside / (self.light_beside + photons),
                torch.log(photons / self.background.clamp_min(0.1).sqrt()),
                torch.log(light_sigma / photons),
                torch.log(lateral.clamp_min(1e-3)),
                torch.log(axial.clamp_min(1e-2)) * (axial > 0),
                self.mean[:, 3] / self.pixel_size_nm / 5,
                torch.log(self.background.clamp_min(0.1)),
            ],
            1,
        )


N_FEATURES = 11
PRODUCTS = (
    *((0, j) for j in (0, 1, 2, 3, 4, 5, 7)),
    *((2, j) for j in (1, 2, 3, 5, 7)),
    *((3, j) for j in (3, 4, 5)),
    *((4, j) for j in (1, 4, 5)),
    *((5, 5), (6, 6), (7, 7), (8, 9), (9, 9)),
)
"""pairs of features whose products are features, too"""
N_COLUMNS = 1 + N_FEATURES + len(PRODUCTS)


@final
@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Corrections of n molecules."""

    probability: Tensor
    """(n,)"""
    light: Tensor
    """(n,) factor of the photons"""
    half_68: Tensor
    """(n, 4) half-widths of the central 68.27 % intervals over the stated sigma"""
    half_95: Tensor
    """(n, 4) half-widths of the central 95 % intervals over the stated sigma"""
    spread: Tensor
    """(n,) relative standard deviation of the expected number (`counts.numbers`)"""

    def __getitem__(self, rows: Tensor) -> Corrected:
        return Corrected(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def placed(self, mean: Tensor) -> Tensor:
        """(n, 4) the means, with the photons corrected."""
        light = self.light[:, None] * mean[:, 2:3]
        return torch.cat([mean[:, :2], light, mean[:, 3:]], 1)

    def drawn(self, values: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """(n, 4) draws, bent so that both intervals hold what they should.

        Tukey's h distribution, u exp(h u^2 / 2) of a standard normal u, has heavy tails for h > 0
        (Goerg, The Lambert way to Gaussianize heavy-tailed data, Sci. World J. 2015, eq. 5).

        Args:
            values: draws as stated, by `QUANTITIES`.
            mean, sigma: (n, 4) moments as stated.
        """
        normal = torch.where(sigma > 0, (values - mean) / sigma, 0.0)
        h = 2 * torch.log(self.half_95 / self.half_68 / NORMAL_95) / (NORMAL_95**2 - 1)
        squared = normal.square().clamp(max=9.0)
        bent = normal * torch.exp(h.clamp(*TAILS) * (squared - 1) / 2)
        return self.placed(mean) + sigma * self.half_68 * bent


class Numbers(NamedTuple):
    """True molecules in regions of frames."""

    region: Tensor
    """(n,) int64, the region of each of n molecules that are stated; -1: of none"""
    true: Tensor
    """(regions,) number of true molecules"""
    regions: int
    """number of regions of a frame; those of a frame follow one another"""


@final
@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """Corrections of what a network states, fitted to simulations after its training.

    The log odds of a molecule, the logarithm of the factor of its photons, and those of the
    half-widths of its 68 % and 95 % intervals over the stated sigma are linear in a few features
    (`Stated.features`) and some products of these, which do not leave the range that was fitted.
    Log odds are logistic regressions (Platt, Advances in Large Margin Classifiers, 2000), one for
    what the network lists, which claims the true molecules around it first, and one for the
    others.  Half-widths are quantile regressions of the logarithm of abs(error) / sigma (Koenker
    and Bassett, Econometrica 46, 33, 1978), so that each level holds its share of the errors
    although they are not Gaussian.

    Errors of the number of molecules are alike in the frames of a movie, where molecules are
    doubtful and where many are so close that they cannot be told apart: expected numbers have a
    random effect in common.  Its relative standard deviation is `spread` times the probability that
    the molecule does not exist, and `crowded` times `Stated.crowd`.

    Example:
        The identity changes nothing:

        >>> stated = Stated(
        ...     probability=torch.tensor([0.9], dtype=torch.float64),
        ...     beside=torch.zeros(1),
        ...     around=torch.zeros(1),
        ...     density=torch.zeros(1),
        ...     light_beside=torch.zeros(1),
        ...     mean=torch.tensor([[150.0, 150.0, 1000.0, 0.0]], dtype=torch.float64),
        ...     sigma=torch.tensor([[10.0, 10.0, 50.0, 0.0]], dtype=torch.float64),
        ...     background=torch.tensor([10.0], dtype=torch.float64),
        ...     pixel_size_nm=100.0,
        ... )
        >>> corrected = Recalibration.identity().of(stated)
        >>> round(float(corrected.probability), 3), round(float(corrected.half_95[0, 0]), 2)
        (0.9, 1.96)
    """

    probability: Tensor
    """(2, `N_COLUMNS`) coefficients of the log odds of molecules that the network does not list,
    and of those that it does"""
    light: Tensor
    """(`N_COLUMNS`,) of the logarithm of the factor of photons"""
    half_68: Tensor
    """(4, `N_COLUMNS`) of the logarithm of the half-width over sigma"""
    half_95: Tensor
    """(4, `N_COLUMNS`) of the logarithm of the half-width over 1.96 sigma"""
    range: Tensor
    """(2, `N_FEATURES`) lowest and highest value of each feature; beyond, it counts as these"""
    listed_range: Tensor
    """(2, `N_FEATURES`) the same for photons and half-widths, which are fitted to the listed"""
    spread: float = 0.0
    """relative standard deviation of the expected number of doubtful molecules"""
    crowded: float = 0.0
    """the same of molecules in dense crowds"""

    @classmethod
    def identity(cls) -> Recalibration:
        """What changes nothing."""
        nothing = torch.zeros(N_COLUMNS, dtype=torch.float64)
        log_odds = nothing.clone()
        log_odds[1] = 1.0
        every = torch.full((N_FEATURES,), torch.inf, dtype=torch.float64)
        whole = torch.stack([-every, every])
        return cls(
            probability=log_odds.repeat(2, 1),
            light=nothing,
            half_68=nothing.repeat(4, 1),
            half_95=nothing.repeat(4, 1),
            range=whole,
            listed_range=whole,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, for a file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: torch.as_tensor(v, dtype=torch.float64) for name, v in values.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Recalibration:
        """The inverse of `tensors`.

        Raises:
            ValueError: if a tensor is missing, unknown, or has another shape.
        """
        # models from before crowds had a spread of their own, and what tells likely molecules
        tensors = {"crowded": torch.zeros((), dtype=torch.float64), **tensors}
        tensors.pop("listed", None)
        expected = {name: t.shape for name, t in cls.identity().tensors().items()}
        if expected != {name: t.shape for name, t in tensors.items()}:
            raise ValueError("its recalibration is one of another version of decode; fit it anew")
        spread, crowded = (float(tensors.pop(name)) for name in ("spread", "crowded"))
        return cls(**tensors, spread=spread, crowded=crowded)

    def of(self, stated: Stated) -> Corrected:
        """The corrections of molecules."""
        features = stated.features()
        widths = torch.cat([self.light[None], self.half_68, self.half_95])
        others, listed = self._linear(features, self.probability, self.range).unbind(1)
        probability = torch.sigmoid(torch.where(stated.probability > LISTED, listed, others))
        logs = self._linear(features, widths, self.listed_range)
        factors = logs.clamp(-LARGEST, LARGEST).exp()
        return Corrected(
            probability=probability,
            light=factors[:, 0],
            half_68=factors[:, 1:5],
            half_95=NORMAL_95 * factors[:, 5:9],
            spread=self.spread * (1 - probability) + self.crowded * stated.crowd,
        )

    @staticmethod
    def _linear(features: Tensor, coefficients: Tensor, limits: Tensor) -> Tensor:
        return design_of(features, limits.to(features)) @ coefficients.to(features).T

    @classmethod
    def fit(
        cls,
        stated: Stated,
        judge: Judge,
        *,
        inner: Tensor | None = None,
        numbers: Numbers | None = None,
    ) -> Recalibration:
        """Fit to molecules whose truth is known.

        Args:
            stated: all molecules of some frames, those of little probability too.
            judge: pairs molecules with the truth.
            inner: (n,) bool; which of them have all their light in the frame; None: all.
            numbers: of the frames whose numbers of molecules are to be right; None fits no spread.

        Returns:
            What is too few to be fitted stays as it is stated.
        """
        fitted, p, features = cls.identity(), stated.probability, stated.features()
        listed = p > LISTED
        true, error = judge(listed)
        if not ENOUGH < int(true.sum()) < len(p) - ENOUGH:
            return fitted
        inner = torch.ones_like(true) if inner is None else inner
        kept = inner & ((p > RARE) | (torch.arange(len(p)) % KEPT == 0))
        weight = torch.where(p > RARE, 1.0, float(KEPT))[kept]
        limits = _limits(features[kept])
        fitted = replace(fitted, range=limits)
        design = design_of(features[kept], limits)
        known = true[kept].double()
        every = _logistic(design, known, weight, fitted.probability[0])
        both = [every, every]
        others, likely = ~listed[kept], listed[kept]
        if min(int(others.sum()), int(likely.sum())) > ENOUGH:
            scene = weight * stated.weight[kept]
            both = [
                _logistic(design[others], known[others], scene[others], every),
                _logistic(design[likely], known[likely], weight[likely], every),
            ]
        fitted = replace(fitted, probability=torch.stack(both))
        if numbers is not None:
            p = torch.cat([fitted.of(part).probability for part in stated.split(ROWS_AT_ONCE)])
            spread, crowded = _spreads(p, stated.crowd, numbers)
            fitted = replace(fitted, spread=spread, crowded=crowded)
        used = inner & listed & true & error.isfinite().all(1)
        if int(used.sum()) < ENOUGH:
            return fitted
        return fitted._with_widths(stated[used], error[used])

    def _with_widths(self, stated: Stated, error: Tensor) -> Recalibration:
        """With factors of photons and half-widths, from (n, 4) errors."""
        features, photons = stated.features(), stated.mean[:, 2]
        limits = _limits(features)
        design = design_of(features, limits)
        weight = stated.weight
        light = log_ratio(design, photons, photons - error[:, 2], weight)
        excess = photons * torch.expm1(design @ light)
        error = torch.cat([error[:, :2], error[:, 2:3] + excess[:, None], error[:, 3:]], 1)
        half_68, half_95 = (
            torch.stack(
                [
                    quantiles(design, error[:, i], normal * stated.sigma[:, i], weight, level)
                    for i in range(4)
                ]
            )
            for level, normal in zip(LEVELS, (1.0, NORMAL_95), strict=True)
        )
        return replace(self, light=light, half_68=half_68, half_95=half_95, listed_range=limits)


def _limits(features: Tensor) -> Tensor:
    """Range of each feature but for 2 of 1000 rows on either side."""
    low, high = max(1, len(features) // 500), max(1, len(features) - len(features) // 500)
    ends = [features.kthvalue(k, 0).values for k in (low, high)]
    return torch.stack(ends)


def design_of(features: Tensor, limits: Tensor) -> Tensor:
    """(n, `N_COLUMNS`): a constant, the features within (2, `N_FEATURES`) limits, and their
    products."""
    features = features.clamp(*limits)
    products = [features[:, i] * features[:, j] for i, j in PRODUCTS]
    return torch.cat([torch.ones_like(features[:, :1]), features, torch.stack(products, 1)], 1)


@final
class _Scaled:
    """Columns of unit variance, and the way back from their coefficients."""

    def __init__(self, design: Tensor) -> None:
        self._mean, sd = design.mean(0), design.std(0)
        self._mean[0] = 0.0
        self._sd = torch.where(sd > 1e-9, sd, 1.0)
        self.design = (design - self._mean) / self._sd
        self.penalty = RIDGE * torch.eye(design.shape[1], dtype=design.dtype)

    def coefficients(self, scaled: Tensor) -> Tensor:
        """Coefficients of the columns as they were."""
        own = scaled / self._sd
        own[0] -= (own * self._mean).sum()
        return own


def _logistic(design: Tensor, true: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """Logistic regression by Newton's method, beginning with, and drawn to, `start`."""
    scaled, offset = _Scaled(design), design @ start
    x, n = scaled.design, float(weight.sum())
    sign = 2 * true - 1

    def loss(w: Tensor) -> float:
        fit = (weight * softplus(-sign * (offset + x @ w))).sum() / n
        return float(fit + w @ scaled.penalty @ w / 2)

    w = torch.zeros_like(start)
    before = loss(w)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(offset + x @ w)
        gradient = x.T @ (weight * (p - true)) / n + scaled.penalty @ w
        curvature = (x.T * (weight * p * (1 - p))) @ x / n + scaled.penalty
        step = torch.linalg.solve(curvature, gradient)
        while (after := loss(w - step)) > before + 1e-12:
            step = step / 2
        gain, before, w = before - after, after, w - step
        if gain < 1e-9:
            break
    return start + scaled.coefficients(w)


def log_ratio(design: Tensor, stated: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Logarithm of the ratio of true to stated: a Poisson regression with an offset."""
    scaled = _Scaled(design)
    x, ratio = scaled.design, true / stated
    weight = weight * stated
    weight = weight / weight.sum()
    w = torch.zeros(design.shape[1], dtype=design.dtype)
    for _ in range(NEWTON_STEPS):
        expected = torch.exp((x @ w).clamp(-LARGEST, LARGEST))
        gradient = x.T @ (weight * (expected - ratio)) + scaled.penalty @ w
        curvature = (x.T * (weight * expected)) @ x + scaled.penalty
        w = w - torch.linalg.solve(curvature, gradient)
    return scaled.coefficients(w)


def quantiles(design: Tensor, error: Tensor, sigma: Tensor, weight: Tensor, level: float) -> Tensor:
    """Quantile regression of log(abs(error) / sigma).

    By the majorization of Hunter and Lange, J. Comput. Graph. Stat. 9, 60, 2000.
    """
    if not bool((sigma > 0).any()):
        return torch.zeros(design.shape[1], dtype=design.dtype)
    y = torch.log((error.abs() / sigma.clamp_min(1e-9)).clamp_min(1e-6))
    scaled = _Scaled(design)
    x, own = scaled.design, weight / weight.sum()
    w = torch.zeros(design.shape[1], dtype=design.dtype)
    w[0] = _quantile(y, own, level)
    for _ in range(MAJORIZATIONS):
        curved = own / (1e-3 + (y - x @ w).abs())
        right = x.T @ (curved * y + own * (2 * level - 1))
        before, w = w, torch.linalg.solve((x.T * curved) @ x + scaled.penalty, right)
        if float((w - before).abs().max()) < SETTLED:
            break
    w[0] += _quantile(y - x @ w, own, level)
    return scaled.coefficients(w)


def _quantile(values: Tensor, weight: Tensor, level: float) -> Tensor:
    """Quantile of values with weights that add up to 1."""
    order = values.argsort()
    reached = weight[order].cumsum(0)
    return values[order[int((reached < level).sum().clamp_max(len(values) - 1))]]


def _spreads(probability: Tensor, crowd: Tensor, numbers: Numbers) -> tuple[float, float]:
    """Those of doubtful and of crowded molecules by which the numbers in regions vary as stated,
    and 95 % intervals hold 95 % of those in frames."""
    known = numbers.region >= 0
    p, crowd, region = probability[known], crowd[known], numbers.region[known]
    true = numbers.true.double()
    in_frames = true.view(-1, numbers.regions).sum(1)

    def counts(spread: Tensor) -> Counts:
        return Counts(frame=region, probability=p, n_frames=len(true), spread=spread)

    def sums(values: Tensor) -> Tensor:
        return replace(counts(crowd), probability=values).mean

    doubtful, crowded = sums(p * (1 - p)), sums(p * crowd)
    squared, mixed = float(crowded @ crowded), float(crowded @ doubtful)
    errors, own = float((true - sums(p)).square().sum()), float(doubtful.sum())
    before, spreads = (0.0, 0.0, 0.0), SPREADS.tolist()
    spread = spreads.pop(0)
    for _ in range(2 * len(SPREADS)):
        # the variance in regions is their own, and the sum of (spread doubtful + share crowded)^2
        half = spread * mixed
        left = errors - own - spread**2 * float(doubtful @ doubtful)
        share = (math.sqrt(max(0.0, half**2 + squared * left)) - half) / max(squared, 1e-9)
        share = min(max(0.0, share), float(SPREADS[-1]))
        was, own, below = own, 0.0, torch.zeros_like(in_frames)
        for weight, mean, variance in counts(spread * (1 - p) + share * crowd).given():
            own += weight * float(variance.sum())
            mean, variance = (v.view(-1, numbers.regions).sum(1) for v in (mean, variance))
            sd = variance.clamp_min(1e-6).sqrt()
            below += weight * torch.special.ndtr((in_frames - mean) / sd)
        held = float(((below - 0.5).abs() < 0.475).double().mean())
        if held >= 0.95 and abs(own - was) < 0.02 * own:
            break
        if held < 0.95 and spreads:
            before, spread = (spread, share, held), spreads.pop(0)
    if held < 0.95 or spread == 0:
        return spread, share
    part = (0.95 - before[2]) / (held - before[2])
    return before[0] + part * (spread - before[0]), before[1] + part * (share - before[1])
