"""Beads localized with a PSF that was fitted to the others: their errors, and the usable depths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from decode.calibrate.bead_fit import BeadFit
from decode.calibrate.beads import BeadSet
from decode.calibrate.jitter import jitter_of
from decode.likelihood import Fit, fit_emitters
from decode.optics.psf import PSF
from decode.progress import Progress, Steps, part

__all__ = [
    "LARGEST_BIAS_NM",
    "POOLED_NM",
    "HeldOut",
    "Precision",
    "Range",
    "leave_one_out",
    "precision",
    "usable_range",
]

LARGEST_SPREAD_OVER_BEST = 2.5
"""factor on the best spread and bound up to which a depth is usable"""
LARGEST_BIAS_NM = (10.0, 10.0, 20.0)
"""largest bias of x, y, z at a usable depth: about the precision of a bright molecule"""
POOLED_NM = 100.0
"""range of neighbouring planes that are averaged for bias and spread, over which PSFs change
little"""
LOST_NM, LOST_BOUNDS = 150.0, 6.0
"""errors in z, nm and in bounds, above both of which a bead was found at another depth that looks
the same"""
LARGEST_LOST_PART = 0.05
"""largest part of the beads that are found at another depth where depth is usable"""


class Range(NamedTuple):
    """Depths, nm."""

    low: float
    high: float

    @property
    def length(self) -> float:
        return self.high - self.low

    def __str__(self) -> str:
        return f"z = {self.low:.0f} to {self.high:.0f} nm"


@final
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Beads localized, plane by plane, with a PSF that was fitted to the other beads."""

    z_nm: Tensor
    """(z,) nominal depths of the planes"""
    error_nm: Tensor
    """(n, z, 3) found minus true position, with one constant offset per bead and axis subtracted"""
    bound_nm: Tensor
    """(n, z, 3) Cramer-Rao bound of the pixels used; infinite where they do not determine the
    position"""
    jitter_nm: Tensor
    """(n, z, 3) jitter of the stage, from the other beads of the stack; part of `error_nm`"""

    def bias_nm(self, within: float = math.inf, smooth_nm: float = 100.0) -> Tensor:
        """(z, 3) mean error of all beads, averaged over neighbouring planes.

        Args:
            within: only planes with |z| up to this.
            smooth_nm: planes to average over.
        """
        use = self.z_nm.abs() <= within
        mean = self.error_nm[:, use].mean(0)
        spacing = float(self.z_nm.diff().median()) if len(self.z_nm) > 1 else smooth_nm
        width = min(2 * round(smooth_nm / spacing / 2) + 1, 2 * (len(mean) // 2) + 1)
        pooled = avg_pool1d(mean.T[:, None], width, 1, width // 2, count_include_pad=False)
        return pooled[:, 0].T[: len(mean)]

    def summary(self, within: float = math.inf) -> dict[str, tuple[float, float, float]]:
        """RMS over z of bias, error and bound in x, y, z, with the stage's jitter and without it.

        Args:
            within: only planes with |z| up to this.

        Returns:
            (x, y, z) by name, nm.
        """
        # a spline levels off at its ends, where images do not depend on depth
        use = (self.z_nm.abs() <= within) & self.bound_nm.isfinite().all(2).all(0)
        error, bound = self.error_nm[:, use], self.bound_nm[:, use]
        steady = error - self.jitter_nm[:, use]
        steady = steady - steady.median(1, keepdim=True).values

        def rms(values: Tensor) -> Tensor:
            return values.flatten(0, -2).square().mean(0).sqrt()

        figures = {
            "bias_nm": rms(self.bias_nm(within)),
            "rmse_nm": rms(error),
            "rmse_without_jitter_nm": rms(steady),
            "bound_nm": rms(bound),
            "rmse_over_bound": rms(error) / rms(bound),
            "rmse_without_jitter_over_bound": rms(steady) / rms(bound),
        }
        return {name: (float(v[0]), float(v[1]), float(v[2])) for name, v in figures.items()}

    def steady(self) -> HeldOut:
        """The same without the stage's jitter; beads found at another depth get the median
        error."""
        error = self.error_nm - self.jitter_nm
        error = error - error.median(1, keepdim=True).values
        error = torch.where(self.lost()[..., None], error.median(0).values, error)
        return replace(self, error_nm=error, jitter_nm=torch.zeros_like(error))

    def lost(self) -> Tensor:
        """(n, z) which beads were found at another depth that looks the same."""
        error, bound = self.error_nm[..., 2].abs(), self.bound_nm[..., 2].nan_to_num(0, 0)
        return (error > LOST_NM) & (error > LOST_BOUNDS * bound)

    def inside(self, found: Range) -> Tensor:
        """(z,) which planes lie within a range."""
        return (self.z_nm >= found.low) & (self.z_nm <= found.high)

    def among(self, use: Tensor) -> HeldOut:
        """The same in some of its planes."""
        return HeldOut(
            z_nm=self.z_nm[use],
            error_nm=self.error_nm[:, use],
            bound_nm=self.bound_nm[:, use],
            jitter_nm=self.jitter_nm[:, use],
        )

    def pooled(self, values: Tensor) -> Tensor:
        """Values (z, 3) averaged over neighbouring planes."""
        return replace(self, error_nm=values[None]).bias_nm(smooth_nm=POOLED_NM)

    def spread_nm(self) -> Tensor:
        """(z, 3) standard deviation over the beads, averaged over neighbouring planes."""
        error = self.error_nm
        variance = (error - error.mean(0)).square().sum(0) / (len(error) - 1)
        return self.pooled(variance).sqrt()

    def rms_bound_nm(self) -> Tensor:
        """(z, 3) rms over the beads; infinite where a bead's image does not determine it."""
        return self.bound_nm.nan_to_num(math.inf, math.inf).square().mean(0).sqrt()

    def checks(self, lateral: bool = False) -> dict[str, Tensor]:
        """(z,) which planes pass each check, by the sentence on those that do not.

        Args:
            lateral: in x and y only.
        """
        steady, own_error = self.steady(), 1 / math.sqrt(len(self.error_nm) * self._pooled_planes)
        spread, bias = steady.spread_nm(), steady.bias_nm(smooth_nm=POOLED_NM)
        straight = bias.abs() - 2 * own_error * spread <= torch.tensor(LARGEST_BIAS_NM)
        lost = torch.zeros(len(self.z_nm))
        if not lateral:
            lost = self.pooled(self.lost().float().mean(0)[:, None].expand(-1, 3))[:, 0]
        unambiguous = lost <= LARGEST_LOST_PART
        axes = [0, 1] if lateral else [2]
        sharp = self._sharp(spread, unambiguous)[:, axes].all(1)
        return {
            "beads are found at another depth": unambiguous,
            f"the spread is over {LARGEST_SPREAD_OVER_BEST:g} times its best": sharp,
            f"the bias in x or y is over {LARGEST_BIAS_NM[0]:g} nm": straight[:, :2].all(1),
            f"the bias in z is over {LARGEST_BIAS_NM[2]:g} nm": straight[:, 2] | lateral,
        }

    @property
    def _pooled_planes(self) -> float:
        """Planes over which spread and bias are averaged."""
        return max(1.0, POOLED_NM / float(self.z_nm.diff().median()))

    def _sharp(self, spread: Tensor, unambiguous: Tensor) -> Tensor:
        """(z, 3) where spread (z, 3) and bound are near their best among the unambiguous planes
        (z,)."""
        bound = torch.where(unambiguous[:, None], self.rms_bound_nm(), math.inf)
        # the least of many noisy spreads lies too low: the best is that of the third of least bound
        lowest = bound.argsort(0)[: max(1, len(bound) // 3)]
        best = spread.gather(0, lowest).square().mean(0).sqrt()
        freedom = (len(self.error_nm) - 1) * self._pooled_planes
        own_error = 1 + 2 / math.sqrt(2 * freedom)
        near = spread / own_error <= LARGEST_SPREAD_OVER_BEST * best
        return near & bound.isfinite() & (bound <= LARGEST_SPREAD_OVER_BEST * bound.min(0).values)


def leave_one_out(
    beads: BeadSet,
    *,
    start_xyz: Tensor,
    without: Callable[[int], Steps[BeadFit[PSF]]],
) -> Steps[HeldOut]:
    """Localize each bead, plane by plane, with a PSF of all others.

    Args:
        beads: two or more.
        start_xyz: (n, 3) approximate position of each bead in its crop, nm.
        without: the fit that leaves out the i-th bead.
    """
    errors, bounds, jitters = [], [], []
    n = len(beads)
    for i in range(n):
        message = f"trying the PSF on bead {i + 1} of {n}, left out of the fit"
        fit = yield from part(without(i), i / n, (i + 0.8) / n, message)
        located = _localized(fit, beads, i, start_xyz[i])
        error = located.xyz - pad(beads.z_nm[:, None], (2, 0))
        errors.append(error - error.median(0).values)
        # of the pixels that were looked at: the patch of the PSF is wider, and informs more
        sigma = located.xyz_sigma
        bounds.append(torch.where(sigma > 0, sigma, math.inf))
        jitters.append(jitter_of(fit, beads.stack[beads.others(i)], beads.stack[i : i + 1])[0])
        yield Progress((i + 1) / n, message)
    return HeldOut(
        z_nm=beads.z_nm,
        error_nm=torch.stack(errors),
        bound_nm=torch.stack(bounds),
        jitter_nm=torch.stack(jitters),
    )


def _localized(fit: BeadFit[PSF], beads: BeadSet, i: int, xyz: Tensor) -> Fit:
    """Fits of the i-th bead in each plane, without the outermost pixels of its crop."""
    inner = slice(1, -1)
    images = beads.crops[i][:, inner, inner]
    start = xyz.expand(len(images), 3) - torch.tensor([beads.pixel_size_nm] * 2 + [0.0])
    floor = beads.noise[i].floor
    own = None
    if isinstance(floor, Tensor):
        own = floor[:, inner, inner].expand(len(images), -1, -1)
    ends = float(beads.z_nm[0]), float(beads.z_nm[-1])
    return fit_emitters(fit.psf, beads.camera, images, start, z_range=ends, noise_floor=own)


def usable_range(held_out: HeldOut, *, lateral: bool = False) -> Range | None:
    """The depths over which held-out beads are localized well.

    The longest run of planes in which, averaged over 100 nm, spread in z and bound are within 2.5
    times their best, the bound is finite, the bias is at most 10 nm in x, y and 20 nm in z, and at
    most one in twenty beads is found at another depth.  The stage's jitter is subtracted; spread
    and bias may exceed their limits by twice their own error, so that the noise of few beads does
    not narrow the range.

    Args:
        held_out: held-out beads of a calibration.
        lateral: require x and y only.

    Returns:
        Its ends in nm; None if there is no such run of two planes or more.
    """
    good = torch.stack([*held_out.checks(lateral).values()]).all(0)
    low, high = _longest_run(good.tolist())
    if high - low < 2:
        return None
    return Range(float(held_out.z_nm[low]), float(held_out.z_nm[high - 1]))


@final
@dataclass(frozen=True, kw_only=True)
class Precision:
    """Errors of held-out beads, depth by depth."""

    z_nm: Tensor
    """(z,)"""
    error_nm: Tensor
    """(z, 3) rms over the beads and 100 nm of depth"""
    bound_nm: Tensor
    """(z, 3) Cramer-Rao bound, rms over the beads; infinite where an image does not determine it"""


def precision(held_out: HeldOut) -> Precision:
    """Error in x, y and z against the bound.

    As in the verdict, the stage's jitter and beads found at another depth are left out.
    """
    error = held_out.pooled(held_out.steady().error_nm.square().mean(0)).sqrt()
    return Precision(z_nm=held_out.z_nm, error_nm=error, bound_nm=held_out.rms_bound_nm())


def _longest_run(good: Sequence[bool]) -> tuple[int, int]:
    """First and one past the last of the longest run of True; (0, 0) if there is none."""
    best, start = (0, 0), 0
    for i, ok in enumerate([*good, False]):
        if not ok:
            best, start = max(best, (start, i), key=lambda run: run[1] - run[0]), i + 1
    return best
