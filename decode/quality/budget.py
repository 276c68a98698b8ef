"""Budget: what the resolution is made of, in square nanometres, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from scipy.optimize import curve_fit

from decode.quality.displacement import Displacement
from decode.quality.distributions import Locking
from decode.quality.resolution import Resolution, smoothed
from decode.quality.spectrum import Spectrum

__all__ = ["Blur", "Budget", "Part", "blur_of", "budget_of"]

Floats = npt.NDArray[np.float64]

WELL_LABELLED = math.log(30 / math.pi)
"""ln(3 N S / W) of a line with ten localizations in a length as long as the resolution, five for
each Nyquist interval (Legant et al., Nature Methods 13, 359, 2016): labelling costs nothing from
there on"""
AGREES = 0.1
"""largest difference of predicted and observed resolution, as a share"""
SEEN, RANGE = 0.5, 6.0
"""the spectrum of the structure is fitted where the blur leaves as much of it, down to frequencies
so many times smaller"""
FEWEST_RINGS = 4
MISSES = 1.3
"""deviance per degree of freedom from which on a model misses the light"""
DIRECTIONS = 16
SAMPLES = 400
"""standard deviations and times, of which means are taken"""

REMEDIES = {
    "photons": "more light: a longer exposure, a brighter dye or less background, or `decode "
    "link`, which joins the localizations of a molecule",
    "excess": "the molecules scatter more than their stated uncertainty: see the checks of "
    "`decode localize`, calibrate camera and PSF, or a model by `decode calibrate model`",
    "drift": "run `decode drift`",
    "density": "more molecules: a longer movie or denser labelling",
    "misfit": "the PSF does not fit, and places depend on it: calibrate it from beads (`decode "
    "calibrate psf`) or from the movie (`decode calibrate in-situ`)",
}
ONCE = {
    "link": {"photons": "more light: a longer exposure, a brighter dye or less background"},
    "drift": {
        "drift": "what was subtracted left some: `decode drift` of the table before, with beads "
        "(`--fiducials`) or a measured trace (`--apply`)"
    },
}
"""remedies after a command was applied to the table"""


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """One cause of limited resolution."""

    cause: str
    """photons, excess, drift, density or misfit"""
    nm2: float | None
    """its part of the square of the resolution; None where the table does not tell it"""
    error_nm2: float | None
    """standard error"""
    sigma_nm: float | None
    """standard deviation of the places that it causes; None for the density"""
    sentence: str


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """Parts of the resolution, and whether they explain what is seen."""

    parts: tuple[Part, ...]
    """largest first; those that the table does not tell are last"""
    predicted_nm: float
    """resolution (FRC) by the parts that both halves of a movie do not share"""
    observed_nm: float
    observed_error_nm: float | None
    total_nm: float
    """predicted, with the misfit that both halves share and that no FRC sees"""
    verdict: str
    """the largest part and what to do"""

    @property
    def agrees(self) -> bool:
        """Whether the prediction is within 10 % of the observation."""
        return abs(self.predicted_nm / self.observed_nm - 1) <= AGREES

    @property
    def comparison(self) -> str:
        """Predicted against observed, in words."""
        both = f"{self.predicted_nm:.1f} nm predicted, {self.observed_nm:.1f} nm observed"
        if self.agrees:
            return both
        if self.unexplained_nm2 > 0:
            return (
                f"{both}: they do not agree; {self.unexplained_nm2:.0f} nm^2 are of a cause that "
                "the table does not show, such as errors that come and go, or large labels"
            )
        return (
            f"{both}: they do not agree; a cause is overrated, or molecules that come back are "
            "taken for structure"
        )

    @property
    def unexplained_nm2(self) -> float:
        """Square of the observed resolution less that of the predicted one."""
        return self.observed_nm**2 - self.predicted_nm**2


@final
@dataclass(frozen=True, kw_only=True)
class Blur:
    """What moves the localizations of a molecule, by cause; None where a table does not tell it."""

    sigma: Floats
    """(n,) stated standard deviations along x and y, nm"""
    ratio: tuple[float, float] | None
    """scatter of repeated localizations over the stated one, and its standard error"""
    drift: Displacement | None
    """between blocks of frames"""
    brightness: Displacement | None
    """between classes of photons"""
    locking: tuple[Locking, ...]
    """along x and y"""
    goodness: float | None
    """median deviance per degree of freedom of the fits"""
    applied: tuple[str, ...]
    """commands that were applied to the table, of those in `ONCE`"""

    @property
    def by_misfit(self) -> float:
        """Share of the excess that the fits' deviance explains.

        Where a model misses, errors have the variance that is stated times the deviance per degree
        of freedom (quasi-likelihood; McCullagh and Nelder, Generalized Linear Models, 1989, 4.5).
        """
        if self.goodness is None or self.ratio is None or self.goodness < MISSES:
            return 0.0
        excess = self.ratio[0] ** 2 - 1
        return min(1.0, (self.goodness - 1) / excess) if excess > 0 else 0.0


def blur_of(
    *,
    sigma: Floats,
    ratio: tuple[float, float] | None,
    drift: Displacement | None,
    brightness: Displacement | None,
    locking: tuple[Locking, ...],
    goodness: float | None = None,
    applied: tuple[str, ...] = (),
) -> Blur:
    """A `Blur` of what is known: displacements without structure that tells them are not."""
    known = sigma[np.isfinite(sigma) & (sigma > 0)]
    quantiles = np.quantile(known, (np.arange(SAMPLES) + 0.5) / SAMPLES)
    return Blur(
        sigma=quantiles,
        ratio=ratio,
        drift=drift if drift is not None and drift.told else None,
        brightness=brightness if brightness is not None and brightness.told else None,
        locking=locking,
        goodness=goodness,
        applied=applied,
    )


def budget_of(spectrum: Spectrum, observed: Resolution, blur: Blur) -> Budget | None:
    """The parts of the resolution; None where the curve does not cross, or is too short to tell.

    The correlation of both halves is P / (P + 2 W) with P = N S H: S is the spectrum of the
    structure, W that of the noise (1, or more where blinks last), and H what blur leaves of the
    power at frequency q, exp(-4 pi^2 sigma^2 q^2) for a Gaussian one (Nieuwenhuizen et al., Nature
    Methods 10, 557, 2013, eq. 3).  At 1/7, P = W / 3, so that the resolution R = 1/q is

        R^2 = 4 pi^2 (sigma_1^2 + sigma_2^2 + ...) / ln(3 N S / W) :

    causes of blur add, and N S / W says how densely the structure is labelled.  H is a product over
    the causes: stated standard deviations; their excess, by repeated localizations; drift, by the
    displacement of blocks of frames; PSF misfit, by the displacement of dim against bright
    molecules.  N S is a power law of q, fitted where H > 1/2 and extrapolated; then R follows
    without looking at the curve near the threshold.

    Of the excess, as much is the misfit's as the deviance of the fits explains (`Blur.by_misfit`).
    With L = ln(3 N S / W), the density's part is R^2 (1 - L / 2.26) where L is below 2.26, the
    value of a line with ten localizations a resolution; else it is 0.  A bias that repeats with the
    pixels moves both halves alike, and a copy of all structure, displaced, is in both: no FRC sees
    the one, and little of the other.  The part of the misfit is that of its variance; only what
    both halves do not share is in the prediction.
    """
    if observed.value_nm is None:
        return None
    structure = smoothed(spectrum.structure(), spectrum) / spectrum.own.sum()
    noise = smoothed(spectrum.noise(), spectrum) / spectrum.own.sum()
    q = spectrum.frequency
    transfers = _transfers(blur, q)
    left = np.prod(list(transfers.values()), axis=0)
    law = _power_law(q, structure / left, noise / left, left, spectrum)
    if law is None:
        return None
    labelled, relative_error = law
    signal = labelled * left / np.maximum(noise, 1e-9)
    at = _falls_below(q, signal, 1 / 3)
    if at is None:
        return None
    logs = {cause: -_log_at(q, transfer, at) for cause, transfer in transfers.items()}
    ln_labelling = max(sum(logs.values()), 1e-6)
    scale = 4 * math.pi**2 / max(ln_labelling, WELL_LABELLED)
    per_log = scale / (2 * math.pi * at) ** 2
    density = max(0.0, 1 - ln_labelling / WELL_LABELLED) / at**2
    parts = _parts(blur, {c: v * per_log for c, v in logs.items()}, scale)
    density_error = relative_error / WELL_LABELLED / at**2
    parts.append(
        Part(
            cause="density",
            nm2=density,
            error_nm2=density_error,
            sigma_nm=None,
            sentence=f"structure has {math.exp(ln_labelling) / 3:.1f} times the power of the noise "
            f"at {1 / at:.0f} nm, {math.exp(WELL_LABELLED) / 3:.1f} are enough",
        )
    )
    parts.sort(key=lambda part: -math.inf if part.nm2 is None else part.nm2, reverse=True)
    hidden = scale * _misfit_variance(blur) - logs.get("misfit", 0.0) * per_log
    return Budget(
        parts=tuple(parts),
        predicted_nm=1 / at,
        observed_nm=observed.value_nm,
        observed_error_nm=observed.error_nm,
        total_nm=math.sqrt(1 / at**2 + max(hidden, 0.0)),
        verdict=f"the largest part is {_TITLES[parts[0].cause]}: {_remedy(parts[0].cause, blur)}",
    )


def _remedy(cause: str, blur: Blur) -> str:
    after = (ONCE[command] for command in blur.applied if cause in ONCE[command])
    return next(after, REMEDIES)[cause]


_TITLES = {
    "photons": "the number of photons",
    "excess": "scatter beyond the stated uncertainty",
    "drift": "drift",
    "density": "the density of molecules",
    "misfit": "the PSF's misfit",
}


def _transfers(blur: Blur, q: Floats) -> dict[str, Floats]:
    """(r,) power that each cause leaves."""
    ratio = 1.0 if blur.ratio is None else blur.ratio[0]
    own = _gaussian(blur.sigma * min(ratio, 1.0), q)
    found = {"photons": own}
    if blur.ratio is not None:
        found["excess"] = _gaussian(blur.sigma * ratio, q) / own
    if blur.drift is not None:
        found["drift"] = _drifting(blur.drift, q)
    if blur.brightness is not None:
        found["misfit"] = _shifted(blur.brightness, q)
    return {cause: np.clip(transfer, 1e-30, 1.0) for cause, transfer in found.items()}


def _gaussian(sigma: Floats, q: Floats) -> Floats:
    """Pairs of localizations with any two of the standard deviations."""
    return np.asarray(np.exp(-2 * (np.pi * sigma * q[:, None]) ** 2).mean(1) ** 2)


def _directions() -> Floats:
    angle = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    return np.stack([np.cos(angle), np.sin(angle)])


def _drifting(drift: Displacement, q: Floats) -> Floats:
    """Pairs of blocks that do not follow each other; the stage moves evenly between the middles of
    blocks."""
    n = len(drift.path)
    path = np.concatenate(
        [1.5 * drift.path[:1] - 0.5 * drift.path[1:2], drift.path,
         1.5 * drift.path[-1:] - 0.5 * drift.path[-2:-1]]
    )  # fmt: skip
    middle = np.concatenate([[0.0], np.arange(n) + 0.5, [float(n)]])
    per_block = max(2, SAMPLES // n)
    time = (np.arange(n * per_block) + 0.5) / per_block
    place = np.stack([np.interp(time, middle, path[:, a]) for a in range(2)], 1) @ _directions()
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) >= 2
    power = []
    for frequency in q:
        phase = np.exp(2j * np.pi * frequency * place).reshape(n, per_block, -1).mean(1)
        pairs = np.einsum("bk,ck,bc->", phase, phase.conj(), apart).real
        power.append(pairs / apart.sum() / DIRECTIONS)
    return np.array(power)


def _shifted(classes: Displacement, q: Floats) -> Floats:
    place = classes.path @ _directions()
    phase = np.exp(2j * np.pi * q[:, None, None] * place)
    mean = (classes.weight[:, None] * phase).sum(1)
    return np.asarray((np.abs(mean) ** 2).mean(1))


def _power_law(
    q: Floats, values: Floats, noise: Floats, left: Floats, spectrum: Spectrum
) -> tuple[Floats, float] | None:
    """(r,) power of the structure without blur, as a power law, and its relative error."""
    high = q[left > SEEN].max(initial=0.0)
    used = (q <= high) & (q >= high / RANGE)
    if used.sum() < FEWEST_RINGS:
        used = np.arange(len(q)) < FEWEST_RINGS
    x = q[used] / q[used].max()
    spread = (np.abs(values[used]) + 2 * noise[used]) / np.sqrt(spectrum.waves[used] / 2)

    def power(x: Floats, offset: float, slope: float) -> Floats:
        return np.asarray(np.exp(offset - slope * np.log(x)))

    start = (math.log(max(float(np.median(values[used])), 1e-3)), 1.0)
    try:
        (offset, slope), covariance = curve_fit(
            power, x, values[used], p0=start, sigma=spread, absolute_sigma=True, maxfev=2000
        )
    except RuntimeError:
        return None
    law = power(q / q[used].max(), float(offset), float(slope))
    error = math.sqrt(float(covariance[0, 0]) / spectrum.n_tiles)
    return law, error


def _falls_below(q: Floats, values: Floats, level: float) -> float | None:
    """Frequency at which values first fall below a level."""
    below = np.flatnonzero(values < level)
    if not len(below) or below[0] == 0:
        return None
    i = int(below[0])
    share = (values[i - 1] - level) / (values[i - 1] - values[i])
    return float(q[i - 1] + share * (q[i] - q[i - 1]))


def _log_at(q: Floats, transfer: Floats, at: float) -> float:
    return float(np.interp(at, q, np.log(transfer)))


def _locked_variance(blur: Blur) -> float:
    """nm^2 along one axis; of axes that are not locked to pixels, 0."""
    found = [each.bias_nm**2 for each in blur.locking if each.locked]
    return sum(found) / 2


def _misfit_variance(blur: Blur) -> float:
    """nm^2 along one axis."""
    shifted = 0.0 if blur.brightness is None else max(blur.brightness.variance, 0.0)
    return _locked_variance(blur) + shifted


def _parts(blur: Blur, nm2: dict[str, float], scale: float) -> list[Part]:
    """All but the density; `scale` times a variance is a part."""
    typical = math.sqrt(float((blur.sigma**2).mean()))
    parts = [
        Part(
            cause="photons",
            nm2=nm2["photons"],
            error_nm2=None,
            sigma_nm=math.sqrt(nm2["photons"] / scale),
            sentence=f"stated uncertainties are {typical:.1f} nm (root mean square)",
        )
    ]
    parts.append(_excess(blur, nm2, scale, typical))
    parts.append(_drift(blur, nm2, scale))
    parts.append(_misfit(blur, scale, blur.by_misfit * nm2.get("excess", 0.0)))
    return parts


def _excess(blur: Blur, nm2: dict[str, float], scale: float, typical: float) -> Part:
    if blur.ratio is None:
        return _untold("excess", "too few molecules are seen in successive frames")
    ratio, error = blur.ratio
    return Part(
        cause="excess",
        nm2=nm2["excess"] * (1 - blur.by_misfit),
        error_nm2=2 * ratio * error * typical**2 * scale,
        sigma_nm=math.sqrt(max(nm2["excess"] * (1 - blur.by_misfit), 0.0) / scale),
        sentence=f"molecules in successive frames scatter {ratio:.2f} +- {error:.2f} times as much "
        "as stated",
    )


def _drift(blur: Blur, nm2: dict[str, float], scale: float) -> Part:
    if blur.drift is None:
        return _untold("drift", "no structure tells it")
    rms = math.sqrt(max(blur.drift.variance, 0.0))
    return Part(
        cause="drift",
        nm2=nm2["drift"],
        error_nm2=blur.drift.error * scale,
        sigma_nm=rms,
        sentence=f"parts of the movie lie {rms:.1f} nm off each other (root mean square an axis)",
    )


def _misfit(blur: Blur, scale: float, excess: float) -> Part:
    if blur.brightness is None and not blur.locking and blur.goodness is None:
        return _untold("misfit", "neither structure nor the size of a pixel tells it")
    locked = _locked_variance(blur)
    error = sum((2 * e.bias_nm * e.error_nm) ** 2 for e in blur.locking if e.locked) / 4
    light = "" if excess == 0 else f"; fits leave {blur.goodness:.1f} times the deviance of noise"
    shift = 0.0
    if blur.brightness is not None:
        shift = math.sqrt(max(blur.brightness.variance, 0.0))
        error += blur.brightness.error**2
    return Part(
        cause="misfit",
        nm2=scale * _misfit_variance(blur) + excess,
        error_nm2=math.sqrt(error) * scale,
        sigma_nm=math.sqrt(_misfit_variance(blur) + excess / scale),
        sentence=f"a bias that repeats with the pixels is {math.sqrt(locked):.1f} nm, that between "
        f"dim and bright molecules {shift:.1f} nm{light}; errors that all share are not seen",
    )


def _untold(cause: str, why: str) -> Part:
    return Part(cause=cause, nm2=None, error_nm2=None, sigma_nm=None, sentence=why)
