"""Polishing: a network's molecules refined by the likelihood of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import conv2d, pad

from decode.emitters import EmitterSet, correlations
from decode.likelihood.single import Fit, scaled_deviance
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["Normal", "fit_jointly", "means_of", "on_tracks", "polish", "tracks_of", "windows_for"]

SOLVED_AT_ONCE = {"cpu": 2**10, "cuda": 2**16}
DRAWN_AT_ONCE = {"cpu": 2**12, "cuda": 2**14}
"""emitters in one call, by the device.

Of fewer, threads of a CPU wait for the interpreter, and of more, the cache is left.  A GPU is the
busier the more it gets; by their shapes so many take less than 2 GB.
"""
USUAL_DEPTHS = 0.8
"""share of the depths of a PSF over which most molecules lie"""
LEAST_BOUND_NM = 1e-3
"""lower bound of the precision of a molecule"""
MAX_NEIGHBOURS = 6
"""most neighbours that are fitted together with an emitter; the light of the others is fixed"""


class _Elsewhere(NamedTuple):
    """Gaussians of the positions of neighbours, as the frames say that show them alone."""

    information: Tensor
    """(n, neighbours, d, d) inverse covariances, 0 where there is no such frame"""
    pull: Tensor
    """(n, neighbours, d) the same times the means"""

    def of(self, rows: Tensor, n_neighbours: int) -> _Elsewhere:
        """Those of the first neighbours of some rows."""
        return _Elsewhere(*(values[rows, :n_neighbours] for values in self))


class Stage(NamedTuple):
    """Steps of the fit in windows of one size."""

    max_bound_ratio: float
    """largest ratio of the Cramer-Rao bound in the window to that in the whole patch"""
    max_steps: int
    converged_step: float
    """step in standard deviations below which a molecule has converged"""


STAGES = (Stage(1.15, 6, 0.5), Stage(1.04, 3, 1.0))
"""steps in small windows, which are cheap, then in large ones, for the rest of the information.

Each step is many times shorter than the one before, and one step from near the maximum is as
efficient as many (one-step estimators: van der Vaart, Asymptotic Statistics, 1998, sec. 5.7).
"""
MAX_DEVIANCE_RISE = 0.1
"""largest rise of the deviance over a fit that counts as converged"""
DAMPING = 1e-2
"""damping of the Fisher information, relative to its diagonal, which keeps inseparable emitters in
place"""
LONGEST_STEP, MAX_STEP_NM = 0.4, 250.0
"""longest step along x and y in widths of the spot, and in nm"""
MAX_STEP_Z_NM = 150.0
"""longest step along z"""
PRIOR_WIDTH = 2.0
"""width of the prior on molecules with neighbours, in standard deviations of the network"""
LINK_SIGMAS = 3.0
"""largest distance of one molecule in successive frames, in its standard deviations"""
FAR_NM = 1e3
"""upper bound of the distance of one molecule in successive frames"""
SMOOTH_PX, ENOUGH_FRAMES = 3.0, 8
"""length over which background changes, and frames whose mean is enough to show it"""
MAX_SHIFT_SIGMAS = 2.5
"""largest shift of a fit in standard deviations of the network; one that moved further followed
another's light"""
NOISE_DEVIANCE = 1.15
"""deviance per degree of freedom up to which residuals count as noise, and a fit may move twice as
far"""
CLAIMED_PRECISION_AT_HALF_WEIGHT = 5.0
"""ratio of the sigmas of network and fit at which the fit, among neighbours, has half its weight"""
NETWORK_SHARE = 0.1
"""weight of the network where it is as certain as the fit: their errors are correlated"""


@torch.no_grad()
def polish(
    psf: PSF, camera: Camera, adu: Tensor, emitters: EmitterSet, *, parameters: Tensor | None = None
) -> EmitterSet:
    """Refine a network's molecules by the likelihood of the frames in which they were found.

    The fit of `fit_jointly` and the network's estimate are combined, axis by axis.  Where noise
    explains the residuals of the fit (a deviance d per degree of freedom up to `NOISE_DEVIANCE`),
    the network's weight is `NETWORK_SHARE` times the variance of the fit over its own: near 0 where
    the fit is much more certain, and 1 where the likelihood is flat, as along z beyond the measured
    depths of the PSF.  Larger residuals show light that the fit lacks, and its weight falls as
    d^(-3/2).  The variance is that of the mixture of both.  A fit among neighbours that states a
    much higher precision than the network is overconfident, and gets less weight
    (`CLAIMED_PRECISION_AT_HALF_WEIGHT`).  These numbers were chosen on simulations.  The network's
    molecule is kept where the fit did not converge, made the frames less likely, or moved further
    than the network's uncertainty allows.

    Args:
        psf: the point spread function.
        camera: its maps, if any, are as large as the frames.
        adu: (t, y, x) counts of successive frames.  Background and blinking are estimated from
            all of them.
        emitters: the network's molecules, with `background`, `xyz_sigma` and `photons_sigma`;
            frames count from the first of `adu`.  z is not fitted where its sigma is NaN.
        parameters: (n, p) PSF parameters per emitter, or None.

    Returns:
        The molecules in the same order, with `correlation`, `goodness` (deviance per degree of
        freedom) and `polished` (whether the fit was taken).

    Raises:
        ValueError: if the table lacks a column, or a molecule lies in none of the frames.

    Example:
        >>> from decode import Camera, GaussianPSF
        >>> from decode.optics.psf import render
        >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
        >>> camera = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
        >>> first, truth = torch.tensor([0]), torch.tensor([[1600.0, 1600.0, 0.0]])
        >>> photons = torch.tensor([2000.0])
        >>> spot = render(psf, frame=first, xyz=truth, photons=photons, n_frames=1, shape=(32, 32))
        >>> adu = camera.sample(10 + spot.detach(), torch.Generator().manual_seed(0))
        >>> found = EmitterSet(
        ...     frame=first,
        ...     xyz=truth + torch.tensor([[12.0, -9.0, 0.0]]),
        ...     photons=photons,
        ...     background=torch.tensor([10.0]),
        ...     xyz_sigma=torch.tensor([[15.0, 15.0, torch.nan]]),  # z is not fitted
        ...     photons_sigma=torch.tensor([200.0]),
        ... )
        >>> polished = polish(psf, camera, adu, found)
        >>> bool((polished.xyz - truth).norm() < 6), bool((polished.xyz_sigma[0, :2] < 5).all())
        (True, True)
    """
    if emitters.xyz_sigma is None or emitters.photons_sigma is None or emitters.background is None:
        raise ValueError(
            "only molecules with uncertainties and background can be polished, as a network "
            "finds them"
        )
    axial = not bool(emitters.xyz_sigma[:, 2].isnan().all())
    fit = fit_jointly(psf, camera, adu, emitters, axial=axial, parameters=parameters)
    axes = [0, 1, 2] if axial else [0, 1]
    moved = ((fit.xyz - emitters.xyz) / emitters.xyz_sigma)[:, axes].abs().amax(1)
    allowed = torch.where(fit.deviance < NOISE_DEVIANCE, 2 * MAX_SHIFT_SIGMAS, MAX_SHIFT_SIGMAS)
    known = torch.isfinite(fit.covariance[:, axes, axes]).all(1)
    polished = fit.converged & (moved < allowed) & known

    variance = fit.covariance.diagonal(dim1=1, dim2=2)
    fitted = Normal(torch.cat([fit.xyz, fit.photons[:, None]], 1), variance[:, :4])
    track = tracks_of(fit.xyz, polished)
    network = Normal.of(emitters, like=fitted.mean).with_one_position(track)
    trust = (fit.deviance[:, None] / NOISE_DEVIANCE).clamp_min(1) ** -1.5
    trust = means_of(track, trust)
    share = (NETWORK_SHARE * fitted.variance / network.variance).clamp_max(1)
    weight = (trust * (1 - share)).where(polished[:, None] & fitted.variance.isfinite(), 0.0)
    mean = network.mean.lerp(fitted.mean.where(weight > 0, network.mean), weight)
    # among neighbours a fit knows only of those that it was given, and may be overconfident
    claimed = network.variance[:, :2].sum(1) / fitted.variance[:, :2].sum(1)
    overconfidence = claimed / CLAIMED_PRECISION_AT_HALF_WEIGHT**2
    doubt = means_of(track, torch.where(fit.alone, 0.0, overconfidence)[:, None])
    variance = network.mixed_variance(fitted, weight / (1 + doubt), mean)
    dtype = emitters.xyz.dtype
    sigma = variance.sqrt().to(dtype)
    # to the last digit, as rows of one position are one measurement to whoever reads them
    mean[:, :3], sigma[:, :3] = means_of(track, mean[:, :3]), means_of(track, sigma[:, :3])
    # the errors of the network along the axes are taken as independent
    shared = weight.sqrt() / variance.sqrt()
    covariance = fit.covariance[:, :4, :4].where(weight[:, :, None] * weight[:, None] > 0, 0.0)
    correlation = correlations(covariance * shared[:, :, None] * shared[:, None])
    correlation = correlation.masked_fill(
        correlations(sigma[:, :, None] * sigma[:, None]).isnan(), torch.nan
    )
    return replace(
        emitters,
        xyz=mean[:, :3].to(dtype),
        photons=mean[:, 3].to(emitters.photons.dtype),
        background=fit.background.where(polished, emitters.background),
        xyz_sigma=sigma[:, :3],
        photons_sigma=sigma[:, 3],
        correlation=correlation.to(dtype),
        goodness=fit.deviance,
        polished=polished,
    )


class Normal(NamedTuple):
    """Independent normal distributions of x, y, z and photons, (n, 4) each."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, emitters: EmitterSet, *, like: Tensor) -> Normal:
        """What a table states."""
        assert emitters.xyz_sigma is not None
        assert emitters.photons_sigma is not None
        mean = torch.cat([emitters.xyz, emitters.photons[:, None]], 1).to(like)
        sigma = torch.cat([emitters.xyz_sigma, emitters.photons_sigma[:, None]], 1).to(like)
        return cls(mean, sigma.square())

    def with_one_position(self, track: Tensor) -> Normal:
        """Rows of a track share a position: their mean by information, and the mean information,
        as the errors of a network in successive frames are alike."""
        information = 1 / self.variance[:, :3]
        total = means_of(track, information)
        place = means_of(track, information * self.mean[:, :3]) / total
        several = (torch.bincount(track)[track] > 1)[:, None]
        known = several & total.isfinite() & (total > 0)
        mean, variance = self.mean.clone(), self.variance.clone()
        mean[:, :3] = place.where(known, mean[:, :3])
        variance[:, :3] = (1 / total).where(known, variance[:, :3])
        return Normal(mean, variance)

    def mixed_variance(self, other: Normal, weight: Tensor, mean: Tensor) -> Tensor:
        """Mean square distance of the mixture of both from a mean.

        It is large where they differ, as one of them is wrong.

        Args:
            other: the other distribution, used where it has a weight.
            weight: (n, 4) weight of the other.
            mean: (n, 4).
        """
        own = self.variance + (self.mean - mean) ** 2
        others = other.variance + (other.mean - mean) ** 2
        return own.lerp(others.where(weight > 0, own), weight)


def tracks_of(xyz: Tensor, joined: Tensor | None = None) -> Tensor:
    """(n,) number of the molecule that each row shows: rows of one position show one.

    Args:
        xyz: (n, 3) of `fit_jointly`.
        joined: (n,) bool, rows that count; the others are alone.
    """
    _, track = torch.unique(xyz, dim=0, return_inverse=True)
    if joined is None:
        return track
    alone = len(xyz) + torch.arange(len(xyz), device=xyz.device)
    return torch.unique(torch.where(joined, track, alone), return_inverse=True)[1]


def means_of(track: Tensor, values: Tensor) -> Tensor:
    """(n, k) values replaced by their means over the rows of a track."""
    n = int(track.max()) + 1 if len(track) else 0
    total = values.new_zeros(n, values.shape[1]).index_add_(0, track, values)
    count = torch.bincount(track, minlength=n).to(values)
    means: Tensor = (total / count[:, None])[track]
    return means


@torch.no_grad()
def fit_jointly(
    psf: PSF,
    camera: Camera,
    adu: Tensor,
    emitters: EmitterSet,
    *,
    axial: bool = True,
    parameters: Tensor | None = None,
    before: Fit | None = None,
    moving: Tensor | None = None,
    stages: Sequence[Stage] = STAGES,
    link: bool = True,
    background: Tensor | None = None,
) -> Fit:
    """Maximum-likelihood molecules of a movie.

    Neighbours are fitted together, and successive frames share the position.  The fit is Fisher
    scoring (Smith et al., Nature Methods 7, 373, 2010) on the likelihood of `scaled_deviance`.  In
    each step every emitter is solved for together with its nearest neighbours in a window around
    it, given the light of all others, and keeps its own part of the solution (a restricted additive
    Schwarz method; Cai and Sarkis, SIAM J. Sci. Comput. 21, 792, 1999).  Windows are small at
    first, and large for the last steps (`STAGES`).  Each frame has photons and background of its
    own.  A molecule that stays on has one position in all its frames, the product of the marginal
    Gaussians of each.  Where two overlap, the frames that show one of them alone say where it is,
    which is a prior for the frames of both (Gaussian belief propagation: Weiss and Freeman, Neural
    Computation 13, 2173, 2001).  The background has the shape of the blurred mean of the frames
    without emitters; each emitter has its own amplitude of it.  The stated uncertainties of the
    start, `PRIOR_WIDTH` times as wide, are a prior on emitters with neighbours; the covariance
    includes those of the neighbours alone.

    Args:
        psf, camera, adu, parameters: as for `polish`.
        emitters: start of the fit.
        axial: fit z; otherwise it stays.
        before: an earlier fit of the same rows, to go on from; `emitters` remain the prior.
        moving: (n,) bool, rows to fit; the others stay as they are in `before`.
        stages: steps, in windows of growing size.
        link: successive frames share positions; otherwise each is fitted by itself.
        background: (y, x) photons per pixel, of which the shape counts; None estimates it.

    Returns:
        A fit per row of `emitters`.  `converged`: its last step was short, and it did not make the
        frames less likely.  The covariance is NaN for an axis that is not fitted.

    Raises:
        ValueError: if the background is missing, or a molecule lies in none of the frames.
    """
    n = len(emitters)
    if emitters.background is None:
        raise ValueError("the molecules to fit need a background to start from")
    if n and (int(emitters.frame.min()) < 0 or int(emitters.frame.max()) >= len(adu)):
        raise ValueError(
            f"there are molecules outside the {len(adu)} frames; count frames from the first "
            "of them"
        )
    axes = [0, 1, 2] if axial else [0, 1]
    ratios = [stage.max_bound_ratio for stage in stages]
    sides = windows_for(psf, camera, axial=axial, most=ratios)
    cuts = [psf.with_patch(side) for side in sides]
    reach_nm = psf.pixel_size_nm * cuts[0].patch_px / 2
    fit = _JointFit(emitters, axes, reach_nm=reach_nm, before=before, moving=moving, link=link)
    placed = emitters if before is None else replace(emitters, xyz=before.xyz.to(emitters.xyz))
    longest = [psf.pixel_size_nm / 2] * 2 + [MAX_STEP_Z_NM] * (len(axes) - 2) + [torch.inf] * 2
    for cut, stage in zip(cuts, stages, strict=True):
        windows = _Windows(
            cut,
            camera,
            adu,
            placed,
            axes=axes,
            parameters=parameters,
            start=fit.start,
            prior=fit.prior,
            background=background,
        )
        fit.run(windows, stage, longest=fit.start.new_tensor(longest))
    fitted = fit.result()
    return fitted if moving is None or before is None else before.where(~moving, fitted)


@final
class _JointFit:
    """Unknowns of all emitters, with the present estimates and covariances.

    Args:
        emitters: start of the fit, with background.
        axes: the fitted axes.
        reach_nm: distance within which emitters are fitted together.
        before: where they stand; None: at the start.
        moving: (n,) bool; None: all.
        link: successive frames share positions.
    """

    def __init__(
        self,
        emitters: EmitterSet,
        axes: list[int],
        *,
        reach_nm: float,
        before: Fit | None,
        moving: Tensor | None,
        link: bool,
    ) -> None:
        self._emitters, self._axes, self._d = emitters, axes, len(axes)
        self.start = _start(emitters, axes)
        """(n, p) positions, photons and background"""
        placed = emitters if before is None else replace(emitters, xyz=before.xyz)
        self._neighbours = _neighbours(placed, reach_nm)
        self._warm = before is not None
        self._n_beside = (self._neighbours >= 0).sum(1)
        self.prior = _prior(emitters, axes, self.start)
        """(n, p) inverse variances of the prior around the start"""
        self.prior[self._n_beside == 0] = 0  # the likelihood of a single emitter suffices
        self._density = (1 + self._n_beside) / (torch.pi * reach_nm**2)
        n, p = self.start.shape
        device = self.start.device
        self._theta = self.start.clone() if before is None else before.values(axes).to(self.start)
        self._solved, self._covariance = self.start.new_zeros(2, n, p, p)
        """covariances: of each frame's own solution, and with one position for each track"""
        self._deviance, self._rise = self.start.new_zeros(2, n)
        self._freedom = self.start.new_ones(n)
        self._by_frame = self._theta[:, : self._d].clone()
        """(n, d) positions, of each frame by itself"""
        self._elsewhere: _Elsewhere | None = None
        self._track, self._n_tracks, self._linked = torch.arange(n, device=device), n, not link
        self._moving = torch.ones(n, dtype=torch.bool, device=device) if moving is None else moving
        self._converged = torch.zeros(n, dtype=torch.bool, device=device)

    def run(self, windows: _Windows, stage: Stage, *, longest: Tensor) -> None:
        """Take steps in windows of one size, until all emitters have converged.

        Args:
            longest: (p,) largest step of each unknown.
        """
        before = self._deviance
        moving = self._moving
        self._freedom = (windows.n_pixels() - self._d - 2).clamp_min(1).to(before.dtype)
        for step in range(stage.max_steps if bool(moving.any()) else 0):
            rows = torch.nonzero(moving)[:, 0]
            windows.draw(rows if step else torch.arange(len(moving)).to(rows), self._theta)
            if step in (0, 2) and not windows.known_background:
                windows.estimate_background()
            rows = rows[torch.argsort(self._n_beside[rows], stable=True)]
            change = self._solve(windows, rows)
            if step == (1 if self._warm else 0):
                before = self._deviance.clone()
            news = step == (0 if self._warm else 1) and not self._linked
            if news:
                self._link()
            length = self._move(rows, change, longest)
            if self._n_tracks < len(moving):
                self._elsewhere = self._of_other_frames()
            # a last step that was not much too long counts
            self._converged[rows] = length < 1.5 * stage.converged_step
            if self._linked:
                # whose neighbours are known from other frames now, is not at rest
                restless = (length > stage.converged_step) | (news & (self._n_beside[rows] > 0))
                moving = self._any_of_track(rows[restless])
            if not bool(moving.any()):
                break
        self._rise += self._deviance - before

    def _solve(self, windows: _Windows, rows: Tensor) -> Tensor:
        """(n, p) steps of emitters, each solved with its neighbours; 0 in other rows.

        Args:
            rows: emitters, in the order of their numbers of neighbours.
        """
        change = torch.zeros_like(self._theta)
        at_once = SOLVED_AT_ONCE[rows.device.type]
        sizes = torch.bincount(self._n_beside[rows]).tolist()
        for m, alike in enumerate(rows.split(sizes)):
            for part in alike.split(max(16, at_once // (1 + m))) if len(alike) else ():
                elsewhere = self._elsewhere.of(part, m) if self._elsewhere and m else None
                solution = windows.solve(
                    part, self._neighbours[part, :m], self._theta, elsewhere=elsewhere
                )
                change[part], self._solved[part], self._deviance[part] = solution
        self._by_frame[rows] = (self._theta + change)[rows, : self._d]
        return change

    def _link(self) -> None:
        """Join the rows of a molecule in successive frames."""
        d = self._d
        place, covariance = self._theta[:, :d], self._solved[:, :d, :d]
        track, n_tracks = _tracks(self._emitters, place, covariance, self._density)
        self._track, self._n_tracks = _agreeing(place, covariance, track, n_tracks)
        self._linked = True

    def _of_other_frames(self) -> _Elsewhere:
        """What is known of the neighbours from frames in which the emitter itself is dark.

        What both are in counts once, by the joint fits of these frames.
        """
        d, beside = self._d, self._neighbours
        own = self._solved[:, :d, :d].double()
        weight = _weights(own, self._doubt(), self._track, self._n_tracks).nan_to_num(0.0)
        pull = (weight @ self._by_frame[:, :, None].double())[:, :, 0]
        known = torch.cat([weight.flatten(1), pull, torch.ones_like(pull[:, :1])], 1)
        total = known.new_zeros(self._n_tracks, known.shape[1]).index_add_(0, self._track, known)
        row, place = torch.nonzero(beside >= 0, as_tuple=True)
        other = beside[row, place]
        pair = self._track[row] * self._n_tracks + self._track[other]
        _, pair = pair.unique(return_inverse=True)
        together = torch.zeros_like(known[:1]).expand(len(row), -1)
        together = together.index_add(0, pair, known[other])[pair]
        rest = total[self._track[other]] - together
        # a difference of equal numbers is none
        rest = rest.where(rest[:, -1:] > 0.5, 0.0).to(self._theta)
        all_rest = rest.new_zeros(*beside.shape, rest.shape[1])
        all_rest[row, place] = rest
        information, pull = all_rest[..., :-1].split([d * d, d], -1)
        return _Elsewhere(information.unflatten(-1, (d, d)), pull)

    def _doubt(self) -> Tensor:
        """(n,) factors of the variance of positions, by what the fits leave unexplained."""
        return (self._deviance / self._freedom / NOISE_DEVIANCE).clamp_min(1) ** 3

    def _move(self, rows: Tensor, change: Tensor, longest: Tensor) -> Tensor:
        """Take a step; returns the largest of its lengths along x, y and z, in standard
        deviations."""
        d, old = self._d, self._theta[rows]
        track = self._track[rows]
        change, covariance = _one_position(
            old,
            change[rows],
            self._solved[rows],
            doubt=self._doubt()[rows],
            track=track,
            n_tracks=self._n_tracks,
            d=d,
        )
        # the spot is about as wide as the standard deviation of its position, times the square root
        # of its photons; a long step in a wide spot is a short one
        sigma = self._solved[rows].diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
        width = sigma[:, :2] * (old[:, d] / sigma[:, d])[:, None]
        longest = longest.expand_as(change).clone()
        longest[:, :2] = torch.maximum(
            longest[:, :2], (LONGEST_STEP * width).clamp_max(MAX_STEP_NM)
        )
        new = old + torch.minimum(torch.maximum(change, -longest), longest)
        new[:, d] = torch.maximum(new[:, d], 0.3 * old[:, d])
        new[:, d + 1].clamp_min_(DARKEST)
        self._theta[rows], self._covariance[rows] = new, covariance
        sigma = covariance.diagonal(dim1=1, dim2=2).sqrt()
        # the expected light is linear in photons and background, which follow the position
        return ((new - old).abs() / sigma)[:, :d].amax(1)

    def _any_of_track(self, rows: Tensor) -> Tensor:
        """(n,) whether one of these rows shows the same molecule, as a track stops as a whole."""
        of_track = torch.zeros(self._n_tracks, dtype=torch.bool, device=rows.device)
        of_track[self._track[rows]] = True
        return of_track[self._track]

    def _sum_of_track(self, values: Tensor) -> Tensor:
        """(n,) sum of values (n,) over the rows of the same molecule."""
        total = self.start.new_zeros(self._n_tracks).index_add_(0, self._track, values)
        return total[self._track]

    def result(self) -> Fit:
        """The fits."""
        d, theta = self._d, self._theta
        covariance = theta.new_full((len(theta), 5, 5), torch.nan)
        fitted = torch.tensor([*self._axes, 3, 4], device=theta.device)
        covariance[:, fitted[:, None], fitted] = self._covariance
        xyz = self._emitters.xyz.clone()
        # rounding apart, rows of a track are at one place already
        xyz[:, self._axes] = means_of(self._track, theta[:, :d])
        worse = self._sum_of_track(self._rise) > MAX_DEVIANCE_RISE
        return Fit(
            xyz=xyz,
            photons=theta[:, d],
            background=theta[:, d + 1],
            covariance=covariance,
            deviance=self._deviance / self._freedom,
            converged=self._converged & ~worse & torch.isfinite(theta).all(1),
            alone=self._sum_of_track(self._n_beside.to(theta.dtype)) == 0,
        )


def _start(emitters: EmitterSet, axes: list[int]) -> Tensor:
    """(n, p) positions, photons and background at the start."""
    assert emitters.background is not None
    bright, dark = emitters.photons.clamp_min(1), emitters.background.clamp_min(DARKEST)
    return torch.cat([emitters.xyz[:, axes], bright[:, None], dark[:, None]], 1)


def _prior(emitters: EmitterSet, axes: list[int], start: Tensor) -> Tensor:
    """(n, p) inverse variances of positions and photons from stated uncertainties; else 0."""
    prior = torch.zeros_like(start)
    if emitters.xyz_sigma is not None and emitters.photons_sigma is not None:
        sigma = torch.cat([emitters.xyz_sigma[:, axes], emitters.photons_sigma[:, None]], 1)
        prior[:, :-1] = (PRIOR_WIDTH * sigma) ** -2
    return prior


def windows_for(psf: PSF, camera: Camera, *, axial: bool, most: Sequence[float]) -> list[int]:
    """Sides of the smallest windows that hold nearly all information of the whole patch.

    Args:
        psf, camera: those of the frames.
        axial: z is fitted.
        most: largest ratios of the Cramer-Rao bound in the window to that in the patch, in falling
            order; for 1000 photons on 20 photons per pixel, as a mean over some depths of the PSF.

    Returns:
        A side in pixels for each ratio.
    """
    low, high = psf.z_range_nm or (0.0, 0.0)
    middle, reach = (high + low) / 2, USUAL_DEPTHS * (high - low) / 2
    depths = torch.linspace(middle - reach, middle + reach, 5) if axial else torch.zeros(1)
    k = psf.patch_px
    centre = torch.full((len(depths), 2), (k // 2 + 0.5) * psf.pixel_size_nm)
    device = next((tensor.device for tensor in psf.parameters()), None)
    places = torch.cat([centre, depths[:, None]], 1).to(device)
    image = psf.integrate_pixels_with_slopes(places).double()
    last = 4 if axial else 3
    even = torch.ones_like(image[:, :1])
    slopes = torch.cat([image[:, 1:last] * 1000, image[:, :1], even], 1)
    weight = 1 / camera.typical_noise.variance(1000 * image[:, 0] + 20)

    def bound(side: int) -> Tensor:
        edge = (k - side) // 2
        part = slice(edge, edge + side)
        j, w = slopes[:, :, part, part].flatten(2), weight[:, None, part, part].flatten(2)
        covariance = torch.linalg.pinv((j * w) @ j.mT, rtol=1e-14, hermitian=True)
        return covariance.diagonal(dim1=1, dim2=2)[:, : slopes.shape[1] - 2].clamp_min(0).sqrt()

    whole = bound(k)
    # an axis of which nothing shows, as z beyond a bead stack, has no bound but rounding
    seen = whole > LEAST_BOUND_NM

    def ratio(side: int) -> float:
        by_axis = (bound(side) / whole).where(seen, torch.nan).nanmean(0)
        return float(by_axis.nan_to_num(0.0).amax())

    sides: list[int] = []
    side = min(7, k)
    for limit in most:  # the largest comes first, as windows grow
        while side < k and ratio(side) >= limit:
            side += 2
        sides.append(min(side, k))
    return sides


@final
class _Windows:
    """Square windows of the frames around emitters, and the light of all emitters in the frames."""

    def __init__(
        self,
        psf: PSF,
        camera: Camera,
        adu: Tensor,
        emitters: EmitterSet,
        *,
        axes: list[int],
        parameters: Tensor | None,
        start: Tensor,
        prior: Tensor,
        background: Tensor | None = None,
    ) -> None:
        self.psf, self.axes, self.parameters = psf, axes, parameters
        self.start, self.prior = start, prior
        device, dtype = start.device, start.dtype
        n, k = len(start), psf.patch_px
        height, width = adu.shape[1:]
        self.place = emitters.xyz
        # windows may hang over the border: frames have a margin, whose pixels do not count
        corner = torch.floor(self.place[:, :2] / psf.pixel_size_nm).long() - k // 2
        self.corner = corner.minimum(corner.new_tensor([width, height])).clamp_min(-k)
        camera = camera.to(device)
        photons = camera.without_bad(camera.to_photons(adu.to(device)))
        self.photons = pad(photons.to(dtype), (k, k, k, k))
        self.light = torch.zeros_like(self.photons)
        self.background = torch.zeros_like(self.photons[0])
        self.known_background = background is not None
        if background is not None:
            self.background[k:-k, k:-k] = background
        counts = start.new_ones(height, width)
        if camera.bad is not None:
            counts = counts.masked_fill(camera.bad, 0)
        self.within = pad(counts, (k, k, k, k))

        def with_margin(value: Tensor) -> Tensor:
            value = value.to(device, dtype)
            if value.numel() == 1:
                return value.reshape(())
            return pad(value.expand(height, width), (k, k, k, k), value=1.0)

        self.noise = camera.noise.map(with_margin)
        stride = width + 2 * k
        reach = torch.arange(k, device=device)
        self.reach, self.offset = reach, (reach[:, None] * stride + reach).flatten()
        self.first = (self.corner[:, 1] + k) * stride + self.corner[:, 0] + k
        self.first_of_frame = emitters.frame.to(device) * self.within.numel()
        # of every pixel by position and photons; a last pixel, all zeros, stands for the outside
        self.slopes = start.new_zeros(n, k * k + 1, len(axes) + 1)
        self.drawn = start.new_zeros(n)
        last = torch.tensor([*range(len(axes) + 1), -1])
        self.own = last.to(device, non_blocking=True)
        """indices of an emitter's own unknowns among those with its neighbours"""

    def draw(self, rows: Tensor, theta: Tensor) -> None:
        """Draw emitters into the frames, in place of their old images.

        Their derivatives with respect to position and photons are kept.
        """
        d = len(self.axes)
        for part in rows.split(DRAWN_AT_ONCE[rows.device.type]):
            position = self.place[part].clone()
            position[:, :d] = theta[part, :d]
            position[:, :2] -= self.corner[part] * self.psf.pixel_size_nm
            own = None if self.parameters is None else self.parameters[part]
            image = self.psf.integrate_pixels_with_slopes(position, own).flatten(2).to(theta.dtype)
            bright = theta[part, d]
            old = self.drawn[part, None] * self.slopes[part, :-1, d]
            change = bright[:, None] * image[:, 0] - old
            pixel = (self.first + self.first_of_frame)[part, None] + self.offset
            self.light.view(-1).index_add_(0, pixel.view(-1), change.view(-1))
            slopes = torch.cat([image[:, 1 : d + 1], image[:, :1]], 1)
            slopes[:, :d] *= bright[:, None, None]
            self.slopes[part, :-1] = slopes.mT
            self.drawn[part] = bright

    def estimate_background(self) -> None:
        """Estimate the background as the blurred mean of the frames without the light of
        emitters."""
        k = len(self.reach)
        rest, light = (frames[:, k:-k, k:-k] for frames in (self.photons - self.light, self.light))
        level = rest.median().clamp_min(DARKEST)
        within, noise = self.within[k:-k, k:-k], self.noise[k:-k, k:-k]
        weight = within / noise.variance(light.clamp_min(0) + level)
        self.background[k:-k, k:-k] = background_of(rest, weight)

    def solve(
        self, rows: Tensor, beside: Tensor, theta: Tensor, *, elsewhere: _Elsewhere | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of emitters, each together with its neighbours.

        Args:
            rows: (n,) emitters.
            beside: (n, m) neighbours of each.
            theta: unknowns of all emitters.
            elsewhere: what other frames say of the neighbours; None: nothing.

        Returns:
            The steps (n, p), and the covariances (n, p, p) and deviances (n,) before them.
        """
        together = torch.cat([rows[:, None], beside], 1)
        pixel = self.first[rows, None] + self.offset
        shape, within = _taken(self.background, pixel), _taken(self.within, pixel)
        noise = self.noise.map(lambda value: _taken(value, pixel) if value.ndim else value)
        pixel += self.first_of_frame[rows, None]
        measured = _taken(self.photons, pixel)
        height = theta[rows, -1:] - shape[:, shape.shape[1] // 2, None]
        mean = shape.add_(height).add_(_taken(self.light, pixel))
        deviance = (scaled_deviance(measured, mean, noise) * within).sum(1)
        root = (within / noise.variance(mean)).sqrt_()
        # by positions and photons of the emitter, then of its neighbours, and by the background
        slope = self._seen(together).mul_(root[:, :, None])
        flat = torch.stack([root, root * measured.sub_(mean)], 1)
        by_flat, of_flat = flat @ slope, flat @ flat.mT
        information = pad(slope.mT @ slope, (0, 1, 0, 1))
        information[:, :-1, -1] = information[:, -1, :-1] = by_flat[:, 0]
        information[:, -1, -1] = of_flat[:, 0, 0]
        prior = pad(self.prior[together, :-1].flatten(1), (0, 1))
        score = torch.cat([by_flat[:, 1], of_flat[:, :1, 1]], 1)
        from_start = (self.start[together, :-1] - theta[together, :-1]).flatten(1)
        score[:, :-1] += prior[:, :-1] * from_start
        if elsewhere is not None:
            _add_elsewhere(elsewhere, theta[beside], information, score)
        scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-20).rsqrt()
        # correlations are inverted, for units of nm and photons differ by orders of magnitude
        information *= scale[:, :, None] * scale[:, None, :]
        prior *= scale**2
        own = self.own
        right = (score * scale)[:, :, None]
        step = _solved(information, prior + DAMPING, right)[:, own, 0] * scale[:, own]
        prior[:, own] = 0
        unit = torch.eye(slope.shape[2] + 1, dtype=slope.dtype, device=slope.device)[:, own]
        units = unit.expand(len(rows), -1, -1)
        covariance = _solved(information, prior + 1e-5, units)[:, own]
        return step, covariance * (scale[:, own, None] * scale[:, None, own]), deviance

    def n_pixels(self) -> Tensor:
        """(n,) number of pixels of each window that are inside the frame and not bad."""
        return _taken(self.within, self.first[:, None] + self.offset).sum(1)

    def _seen(self, emitters: Tensor) -> Tensor:
        """Derivatives of emitters (n, m) in the window of the first of each row.

        Returns:
            (n, pixels, m (axes + 1)).
        """
        k = len(self.reach)
        offset = self.corner[emitters[:, :1]] - self.corner[emitters]
        x, y = (offset[:, :, axis, None] + self.reach for axis in (0, 1))
        # a coordinate outside makes the sum so large that it is the pixel of zeros
        x, y = (
            torch.where((at >= 0) & (at < k), at * step, k * k) for at, step in ((x, 1), (y, k))
        )
        pixel = (y[..., None] + x[:, :, None]).clamp_(max=k * k)
        pixel.add_((emitters * (k * k + 1))[..., None, None])
        slopes = self.slopes.flatten(0, 1).index_select(0, pixel.flatten(2).mT.reshape(-1))
        return slopes.view(len(emitters), k * k, -1)


def _add_elsewhere(
    elsewhere: _Elsewhere, theta: Tensor, information: Tensor, score: Tensor
) -> None:
    """Add what other frames say of the neighbours (n, m, p) to a system (n, q, q) of an emitter,
    its neighbours and the background, in place."""
    (d, p), together = (elsewhere.pull.shape[2], theta.shape[2] - 1), theta.shape[1] + 1
    blocks = information[:, :-1, :-1].unflatten(2, (together, p)).unflatten(1, (together, p))
    own = blocks.diagonal(dim1=1, dim2=3)
    own[:, :d, :d, 1:] += elsewhere.information.movedim(1, -1)
    toward = elsewhere.pull - (elsewhere.information @ theta[:, :, :d, None])[..., 0]
    score[:, :-1].unflatten(1, (together, p))[:, 1:, :d] += toward


def _solved(matrix: Tensor, more: Tensor, right: Tensor) -> Tensor:
    """Solutions (n, q, r) of positive definite matrices (n, q, q).

    `more` (n, q) is added to their diagonals.
    """
    root, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(more))
    return torch.cholesky_solve(right, root)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    # much faster on a CPU than indexing
    return values.view(-1).index_select(0, index.view(-1)).view(index.shape)


def on_tracks(
    emitters: EmitterSet, unknown: Tensor, covariance: Tensor, *, d: int, reach_nm: float
) -> tuple[Tensor, Tensor]:
    """Unknowns and covariances where a molecule has one position in all its successive frames.

    Rows are linked as by `fit_jointly`, and the position is the product of their Gaussians.

    Args:
        emitters: the rows; their `goodness` is the weight of their frames.
        unknown: (n, p) of each frame by itself, the position first.
        covariance: (n, p, p).
        d: number of unknowns of the position: x, y and perhaps z.
        reach_nm: distance over which the density of molecules is counted.
    """
    n = len(emitters)
    place, own = unknown[:, :d], covariance[:, :d, :d]
    beside = (_neighbours(emitters, reach_nm) >= 0).sum(1)
    density = (1 + beside) / (torch.pi * reach_nm**2)
    track, n_tracks = _agreeing(place, own, *_tracks(emitters, place, own, density))
    deviance = unknown.new_ones(n) if emitters.goodness is None else emitters.goodness.to(unknown)
    change, covariance = _one_position(
        unknown,
        torch.zeros_like(unknown),
        covariance,
        doubt=(deviance / NOISE_DEVIANCE).clamp_min(1) ** 3,
        track=track,
        n_tracks=n_tracks,
        d=d,
    )
    return unknown + change, covariance


def _one_position(
    theta: Tensor,
    change: Tensor,
    covariance: Tensor,
    *,
    doubt: Tensor,
    track: Tensor,
    n_tracks: int,
    d: int,
) -> tuple[Tensor, Tensor]:
    """Steps and covariances where the rows of a track share one position.

    The marginal position of a row is Gaussian with its block of the covariance.  The product of the
    Gaussians of a track is the molecule's position; the other unknowns of its rows take their
    conditional means.  A row whose frame is explained less well has less weight, and
    where rows disagree more than their covariances allow, these are scaled by the factor of Birge
    (Phys. Rev. 40, 207, 1932).

    Args:
        theta, change: (n, p) unknowns and their steps.
        covariance: (n, p, p).
        doubt: (n,) factor of the variance of each, at least 1.
        track: (n,) number of the molecule that each row shows.
        n_tracks: number of molecules.
        d: number of unknowns of the position, which come first.
    """
    own = covariance[:, :d, :d]
    information = torch.linalg.inv(own)
    weight = _weights(own, doubt, track, n_tracks)
    position = theta[:, :d] + change[:, :d]
    weighted = (weight @ position[:, :, None])[:, :, 0]
    total = information.new_zeros(n_tracks, d, d).index_add_(0, track, weight)
    summed = information.new_zeros(n_tracks, d).index_add_(0, track, weighted)
    common = torch.linalg.inv_ex(total[track])[0]
    shift = (common @ summed[track][:, :, None])[:, :, 0] - position
    square = (shift * (weight @ shift[:, :, None])[:, :, 0]).sum(1)
    count = torch.bincount(track, minlength=n_tracks).to(square)
    freedom = d * (count - 1).clamp_min(1)
    scatter = square.new_zeros(n_tracks).index_add_(0, track, square) / freedom
    common = common * scatter.clamp_min(1)[track][:, None, None]
    gain = covariance[:, d:, :d] @ information
    change, covariance = change.clone(), covariance.clone()
    change[:, :d] += shift
    change[:, d:] += (gain @ shift[:, :, None])[:, :, 0]
    covariance[:, d:, d:] += gain @ (common - own) @ gain.mT
    covariance[:, :d, :d] = common
    covariance[:, d:, :d] = gain @ common
    covariance[:, :d, d:] = covariance[:, d:, :d].mT
    return change, covariance


def _weights(covariance: Tensor, doubt: Tensor, track: Tensor, n_tracks: int) -> Tensor:
    """(n, d, d) information of each row of a track, less where its frame is explained less well.

    Args:
        covariance: (n, d, d) of positions.
        doubt: (n,) factor of the variance of each, at least 1.
        track: (n,) number of the molecule that each row shows.
        n_tracks: number of molecules.
    """
    # relative to the best row of the track, so that a single row keeps its covariance
    best = doubt.new_full((n_tracks,), torch.inf).scatter_reduce_(0, track, doubt, "amin")
    return torch.linalg.inv_ex(covariance)[0] * (best[track] / doubt)[:, None, None]


def _agreeing(
    place: Tensor, covariance: Tensor, track: Tensor, n_tracks: int
) -> tuple[Tensor, int]:
    """Tracks without the rows that disagree with the others of their track.

    Links compare successive frames alone, and a chain of them may wander: a row further than
    `LINK_SIGMAS` from the mean of the others becomes a molecule of its own.

    Args:
        place, covariance: (n, d) and (n, d, d) of each row by itself.
        track: (n,) number of the molecule that each row shows.
        n_tracks: number of molecules.
    """
    d = place.shape[1]
    weight = torch.linalg.inv_ex(covariance)[0]
    total = weight.new_zeros(n_tracks, d, d).index_add_(0, track, weight)[track] - weight
    weighted = (weight @ place[:, :, None])[:, :, 0]
    summed = weighted.new_zeros(n_tracks, d).index_add_(0, track, weighted)[track] - weighted
    others = torch.linalg.inv_ex(total)[0]
    apart = place - (others @ summed[:, :, None])[:, :, 0]
    square = (apart * torch.linalg.solve_ex(covariance + others, apart)[0]).sum(1)
    alone = (torch.bincount(track, minlength=n_tracks)[track] > 1) & ~(square < LINK_SIGMAS**2)
    track = torch.where(alone, n_tracks + torch.arange(len(track), device=track.device), track)
    _, track = track.unique(return_inverse=True)
    return track, int(track.max()) + 1 if len(track) else 0


def _tracks(
    emitters: EmitterSet, place: Tensor, covariance: Tensor, density: Tensor
) -> tuple[Tensor, int]:
    """(n,) number of the molecule that each row shows, and the number of molecules.

    Rows of successive frames are one molecule if each is the other's nearest, their distance is
    within `LINK_SIGMAS`, and the covariances of their positions (n, d) explain it better than
    chance, at this density (n,) of molecules per nm^2.  How often a molecule is on in the next
    frame, too, is told by the pairs within `LINK_SIGMAS` that chance does not explain.
    """
    n, device = len(emitters), place.device
    frame = emitters.frame.cpu().numpy()
    # frames lie apart along a third axis
    places = np.column_stack([emitters.xyz[:, :2].double().cpu().numpy(), frame * FAR_NM])
    tree, a_frame = _tree(places), np.array([0.0, 0.0, FAR_NM])
    _, after = tree.query(places + a_frame, distance_upper_bound=FAR_NM / 4)
    _, before = tree.query(places - a_frame, distance_upper_bound=FAR_NM / 4)
    rows = np.flatnonzero(after < n)
    rows = rows[before[after[rows]] == rows]
    earlier, later = (torch.from_numpy(index).to(device) for index in (rows, after[rows]))
    apart = place[earlier] - place[later]
    spread = covariance[earlier] + covariance[later]
    square = (apart * torch.linalg.solve_ex(spread, apart)[0]).sum(1)
    by_chance = (
        2 * torch.pi * density[earlier] * torch.linalg.det(spread[:, :2, :2]).clamp_min(0).sqrt()
    )
    # of normal errors, so many times as many are within `LINK_SIGMAS` by chance
    expected = (by_chance * LINK_SIGMAS**2 / 2).nan_to_num(1.0).clamp_max(1)
    found = (square < LINK_SIGMAS**2).sum() - expected.sum()
    stays = (found.clamp_min(0) + 1) / (len(places) + 2)
    by_chance *= (1 - stays) / stays
    same = (square < (-2 * by_chance.log()).clamp_max(LINK_SIGMAS**2)).cpu().numpy()
    links = coo_array((np.ones(same.sum()), (rows[same], after[rows][same])), shape=(n, n))
    n_tracks, track = connected_components(links.tocsr(), directed=False)
    return torch.from_numpy(track.astype(np.int64)).to(device), int(n_tracks)


def _neighbours(emitters: EmitterSet, reach_nm: float) -> Tensor:
    """(n, up to `MAX_NEIGHBOURS`) rows of the nearest emitters of the frame; -1 for none."""
    n, device = len(emitters), emitters.xyz.device
    if n < 2:
        return torch.full((n, 0), -1, device=device)
    # frames lie apart along a third axis, so that one tree serves them all
    xy, frame = (column.double().cpu().numpy() for column in (emitters.xyz[:, :2], emitters.frame))
    places = np.column_stack([xy, frame * 2 * reach_nm])
    k = min(MAX_NEIGHBOURS + 1, n)
    _, found = _tree(places).query(places, k=k, distance_upper_bound=reach_nm)
    found = np.where(found == np.arange(n)[:, None], n, found)
    # an emitter is its own nearest, unless another is at the very same place
    order = np.argsort(found == n, 1, kind="stable")
    found = np.take_along_axis(found, order, 1)[:, :MAX_NEIGHBOURS]
    return torch.from_numpy(np.where(found == n, -1, found)).to(device)


def _tree(places: npt.NDArray[np.float64]) -> cKDTree:
    # a balanced tree parts equal coordinates at the next larger number; next to 0 a processor set
    # to flush denormal numbers makes it 0 again, and SciPy 1.17 recurses until the stack is full
    return cKDTree(places, balanced_tree=False)


def background_of(rest: Tensor, weight: Tensor, *, least_blur_px: float = SMOOTH_PX) -> Tensor:
    """(y, x) photons per pixel: the mean of frames without the light of emitters, blurred.

    Args:
        rest: (frames, y, x) photons.
        weight: (frames, y, x) inverse variances; 0 where a pixel does not count.
        least_blur_px: standard deviation of the blur of many frames; few are blurred more.
    """
    sigma = max(least_blur_px, SMOOTH_PX * (ENOUGH_FRAMES / len(rest)) ** 0.5)
    above, below = _blurred(torch.stack([(weight * rest).mean(0), weight.mean(0)]), sigma)
    return above / below.clamp_min(1e-12)


def _blurred(images: Tensor, sigma_px: float) -> Tensor:
    """(n, y, x) blurred by a Gaussian, with zeros beyond their sides."""
    half = int(3 * sigma_px + 0.5)
    reach = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (reach / sigma_px) ** 2)
    rows = conv2d(images[:, None], kernel[None, None, None] / kernel.sum(), padding=(0, half))
    return conv2d(rows, kernel[None, None, :, None] / kernel.sum(), padding=(half, 0))[:, 0]
