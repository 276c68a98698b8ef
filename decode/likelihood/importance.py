"""Exact posterior of molecules: samples around each, weighted by the camera's likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import permutations
from typing import NamedTuple, final

import torch
from torch import Tensor

from decode.emitters import EmitterSet, correlations
from decode.likelihood.pixels import NODES, LogPolynomial, PixelLikelihood, extremes, pixels_of
from decode.likelihood.polish import on_tracks
from decode.likelihood.windows import Frames, Windows, neighbourhoods
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["ENOUGH", "Model", "Moments", "Prior", "exact_posterior"]

FISHER_STEPS, NEAR = 5, 0.3
"""most steps from the table's molecule to the mode, and the length of the last, in standard
deviations: the next would be much shorter"""
FINE = 0.65
"""share of effective samples below which the proposal is adapted to the moments of the samples"""
WIDE_SHARE, WIDE = 0.1, 1.6
"""share of the samples from a wider Gaussian, and its width: the weights stay bounded where the
posterior has heavier tails than a Gaussian, and of a Gaussian one the ESS is 0.97"""
ENOUGH = 0.5
"""share of effective samples below which a molecule is sampled again"""
ROUNDS, LONGER = 3, 4
"""times that it is, of so many times as many samples"""
TEMPERATURES, FAIR = (2.0, 4.0, 8.0, 16.0), 0.2
"""by which the logarithms of weights are divided until this share of the samples is effective"""
UNKNOWNS_AT_ONCE = 2**15
"""samples of all molecules that are weighted together"""
MODES_AT_ONCE = 256
"""molecules whose modes are found together"""
UNUSUAL, FEWEST_LONE, LEAST_SPREAD = 0.1, 50, 0.2
"""of the usual photons: share of the molecules that have others, fewest lone molecules that tell
them, and least standard deviation of their logarithm"""
WEAK_NM = 300.0
"""standard deviation of the start: proposals of inseparable molecules stay in place"""


@final
@dataclass(frozen=True, kw_only=True)
class Prior:
    """Prior of molecules: flat in position within the window, log-uniform in background, and in
    photons unless it is stated which are usual.

    A movie of `decode.priors.scene.Scene` has one flux, of which that of its molecules varies; the
    flux itself is log-uniform.

    Example:
        >>> bright = Prior(usual=(2000.0, 0.4))
        >>> faint, usual = bright.log_light(torch.tensor([200.0, 2000.0]).log())
        >>> bool(usual - faint > 4)
        True
    """

    photons: tuple[float, float] = (100.0, 1e6)
    """least and most"""
    usual: tuple[float, float] | None = None
    """median of the photons of all but a tenth of the molecules, whose logarithm is normal, and its
    standard deviation; None: all are log-uniform, as that tenth is"""
    background: tuple[float, float] = (DARKEST, 1e5)
    """least and most photons per pixel"""
    depth_nm: tuple[float, float] = (-math.inf, math.inf)
    """least and largest z"""

    def log_light(self, log_photons: Tensor) -> Tensor:
        """Log density of the logarithm of photons, of any shape, between least and most."""
        even = -math.log(math.log(self.photons[1] / self.photons[0]))
        if self.usual is None:
            return torch.full_like(log_photons, even)
        median, spread = self.usual
        normal = -((log_photons - math.log(median)) / spread).square() / 2
        normal = normal + math.log((1 - UNUSUAL) / (spread * math.sqrt(2 * math.pi)))
        return torch.logaddexp(normal, normal.new_tensor(even + math.log(UNUSUAL)))

    def learned(self, photons: Tensor) -> Prior:
        """The same with the usual photons of a movie, from those of its lone molecules (n,).

        Fewer than `FEWEST_LONE` of them tell too little: the prior stays as it is.
        """
        least, most = self.photons
        logs = photons[(photons >= least) & (photons <= most)].double().log()
        if len(logs) < FEWEST_LONE:
            return self
        low, middle, high = logs.quantile(logs.new_tensor([0.16, 0.5, 0.84])).tolist()
        return replace(self, usual=(math.exp(middle), max((high - low) / 2, LEAST_SPREAD)))


@torch.no_grad()
def exact_posterior(
    psf: PSF,
    camera: Camera,
    adu: Tensor,
    emitters: EmitterSet,
    *,
    axial: bool = True,
    parameters: Tensor | None = None,
    prior: Prior | None = None,
    n_samples: int = 500,
    seed: int = 0,
    pixels: PixelLikelihood | None = None,
    background: Tensor | None = None,
    learn: bool = False,
) -> EmitterSet:
    """Mean and covariance of the posterior of each molecule, by importance sampling.

    The unknowns of a molecule are its position, its photons and the background around it. Their
    posterior is the exact likelihood of the counts in a window (`Camera.log_prob`: Poisson
    electrons, EM register, read noise, rounding) times a prior that is flat in position (`Prior`).
    Samples are weighted by the posterior over their own density (self-normalized importance
    sampling; Robert and Casella, Monte Carlo Statistical Methods, 2004, sec. 3.3). This density is
    a Gaussian around the mode, with the inverse Fisher information of the window as its covariance,
    then once adapted to the moments of the first weights (Cappe et al., J. Comput. Graph. Stat. 13,
    907, 2004); a tenth of the samples comes from a wider one. Where few samples have all the
    weight, more are drawn, and their weights tempered while the proposal adapts.

    Up to four molecules whose light overlaps are sampled together; in a larger crowd each is
    sampled with its three nearest neighbours, given the light of the others.  A molecule that is on
    in successive frames has one position: the product of the Gaussians of its frames, linked as by
    `fit_jointly`.

    Args:
        psf: the point spread function.
        camera: its maps, if any, are as large as the frames.
        adu: (t, y, x) counts of successive frames.
        emitters: molecules near the maximum of the likelihood, as from `polish` or `decide`, with
            `background`; frames count from the first of `adu`.
        axial: z is unknown; otherwise it stays.
        parameters: (n, p) PSF parameters per emitter, or None.
        prior: None: `Prior()`.
        n_samples: number of samples of each molecule.
        seed: of the samples.
        pixels: from `pixels_of`, to keep its table for the next frames; None: a new one.
        background: (y, x) photons per pixel, of which the shape counts; None estimates it.
        learn: the usual photons of the prior are those of the lone molecules (`Prior.learned`).

    Returns:
        The molecules in the same order: means, standard deviations, `correlation`, and `ess`, the
        effective share of the samples.

    Raises:
        ValueError: if the background is missing, or a molecule lies in none of the frames.

    Example:
        >>> from decode import Camera, EmitterSet, GaussianPSF
        >>> from decode.optics.psf import render
        >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
        >>> camera = Camera(
        ...     baseline=100.0, e_per_adu=45.0, read_noise_e=74.0, qe=0.9, em_gain=300.0
        ... )
        >>> truth = EmitterSet(
        ...     frame=torch.tensor([0]),
        ...     xyz=torch.tensor([[1610.0, 1580.0, 0.0]]),
        ...     photons=torch.tensor([1000.0]),
        ...     background=torch.tensor([5.0]),
        ... )
        >>> light = render(
        ...     psf,
        ...     frame=truth.frame,
        ...     xyz=truth.xyz,
        ...     photons=truth.photons,
        ...     n_frames=1,
        ...     shape=(32, 32),
        ... )
        >>> adu = camera.sample(5 + light.detach(), torch.Generator().manual_seed(0))
        >>> posterior = exact_posterior(psf, camera, adu, truth, axial=False)
        >>> bool((posterior.xyz - truth.xyz).norm() < 25), bool(posterior.ess[0] > 0.8)
        (True, True)
        >>> posterior.xyz_sigma[0, :2].round().tolist()
        [8.0, 8.0]
    """
    n = len(emitters)
    if emitters.background is None:
        raise ValueError("molecules need a background; pass them as polish or decide list them")
    if n and (int(emitters.frame.min()) < 0 or int(emitters.frame.max()) >= len(adu)):
        raise ValueError(
            f"there are molecules outside the {len(adu)} frames; count frames from the first "
            "of them"
        )
    axes = [2, 0, 1] if axial else [0, 1]  # z first: samples in its order are near to one another
    frames = Frames(psf, camera, adu, emitters, axes=axes, background=background)
    prior = prior or Prior()
    sets = list(neighbourhoods(emitters, frames.reach_nm)) if n else []
    if learn:
        lone = [rows[:, 0] for rows, _ in sets if rows.shape[1] == 1]
        prior = prior.learned(emitters.photons[torch.cat(lone)] if lone else torch.zeros(0))
    model = Model(axes, prior, pixels or pixels_of(camera))
    posterior = Moments.unknown(n, len(axes) + 2)
    for rows, kept in sets:
        k = rows.shape[1]
        # those alike come together: their samples spread alike, and their windows are as large
        order = (
            emitters.photons[rows].mean(1).argsort() if k == 1 else frames.extent(rows).argsort()
        )
        for part in order.split(max(1, MODES_AT_ONCE // k**2)):
            windows = frames.windows(rows[part], parameters)
            found = _sampled(windows, model, k * n_samples, seed)
            for j in range(k):
                own = kept[part, j]
                posterior.take(rows[part, j][own], found.of_molecule(j, windows, axes)[own])
    return _listed(emitters, posterior, axes, frames.reach_nm)


@final
@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and covariance of some posteriors, and how well they are known."""

    mean: Tensor
    """(n, p)"""
    covariance: Tensor
    """(n, p, p)"""
    ess: Tensor
    """(n,) effective share of the samples: 1 / (samples times the sum of squared weights)"""
    n_samples: Tensor
    """(n,)"""
    log_evidence: Tensor
    """(n,) log of the mean weight"""

    @classmethod
    def unknown(cls, n: int, p: int) -> Moments:
        nothing = torch.zeros(n, dtype=torch.float64)
        return cls(
            mean=nothing.new_zeros(n, p),
            covariance=nothing.new_zeros(n, p, p),
            ess=nothing,
            n_samples=nothing.clone(),
            log_evidence=nothing.clone(),
        )

    def of_molecule(self, j: int, windows: Windows, axes: list[int]) -> Moments:
        """Moments of the position in the frame, the photons and the background of one molecule."""
        (k, _), d = windows.shape, len(axes)
        own = torch.tensor([*range(j * d, (j + 1) * d), k * d + j, k * d + k])
        mean = self.mean[:, own]
        mean[:, :d] += windows.origin[:, axes]
        return replace(self, mean=mean, covariance=self.covariance[:, own[:, None], own])

    def put(self, rows: Tensor, others: Moments) -> None:
        """Take over what others, of some rows, know better; a few samples tell no covariance."""
        known = (self.ess * self.n_samples)[rows].clamp_min(self.mean.shape[1] + 1)
        better = others.ess * others.n_samples > known
        self.take(rows[better], others[better])

    def take(self, rows: Tensor, others: Moments) -> None:
        """Take over others, of some rows."""
        for name in (f.name for f in fields(self)):
            getattr(self, name)[rows] = getattr(others, name)

    def __getitem__(self, rows: Tensor) -> Moments:
        return Moments(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Model(NamedTuple):
    """What is fitted, and how likely it is."""

    axes: list[int]
    prior: Prior
    pixels: PixelLikelihood
    nodes: int = NODES
    """of the polynomials of `LogPolynomial`: the more, the wider the samples may spread"""

    def log_prob(self, windows: Windows, unknown: Tensor) -> Tensor:
        """(n, m) float64 log of likelihood times prior, but for a constant of the prior.

        Args:
            windows: n windows.
            unknown: (n, m, q).
        """
        xyz, photons, background = windows.parted(unknown, self.axes)
        parts = (photons.flatten(2), background.flatten(2), xyz[..., 2])
        ranges = (self.prior.photons, self.prior.background, self.prior.depth_nm)
        side_nm = windows.psf.patch_px * windows.psf.pixel_size_nm
        possible = ((xyz[..., :2] > 0) & (xyz[..., :2] < side_nm)).all(3).all(2)
        for part, (least, most) in zip(parts, ranges, strict=True):
            possible &= ((part >= least) & (part <= most)).all(2)
        possible &= self._in_order(windows, xyz)
        # what cannot be has the light of what nearly cannot
        k_d = unknown.shape[2] - photons[0, 0].numel() - background.shape[2]
        unknown = unknown.clone()
        n_photons = photons[0, 0].numel()
        unknown[..., k_d : k_d + n_photons].clamp_(*self.prior.photons)
        unknown[..., k_d + n_photons :].clamp_(*self.prior.background)
        logs = unknown[..., k_d:].double().log()
        log_prob = self.prior.log_light(logs[..., :n_photons]).sum(2) - logs.sum(2)
        for rows, expected in windows.expected(unknown, self.axes):
            log_prob[rows] += self._log_likelihood(windows[rows], expected)
        return log_prob.masked_fill(~possible, -torch.inf)

    def _log_likelihood(self, windows: Windows, expected: Tensor) -> Tensor:
        """(n, m) float64, of photons (n, m, t, p) that are overwritten."""
        low, high = extremes(expected)
        polynomial = LogPolynomial.of(
            self.pixels,
            windows.adu,
            low=low,
            high=high,
            pixel=windows.pixel,
            counts=windows.seen,
            nodes=self.nodes,
        )
        return polynomial(expected).double() + polynomial.at_middle[:, None]

    def _in_order(self, windows: Windows, xyz: Tensor) -> Tensor:
        """(n, m) bool: whether no other order of the molecules is nearer to the start.

        The posterior is the same for any order, and only one of them counts.
        """
        k = windows.shape[0]
        apart = (xyz[:, :, :, None, :2] - windows.xyz[:, None, None, :, :2]).square().sum(4)
        own = apart.diagonal(dim1=2, dim2=3).sum(2)
        ordered = torch.ones_like(own, dtype=torch.bool)
        for order in permutations(range(k)):
            ordered &= own <= apart[:, :, range(k), order].sum(2) * (1 + 1e-6)
        return ordered

    def mode(self, windows: Windows) -> Moments:
        """The mode by Fisher scoring, and the inverse information near it."""
        k, t = windows.shape
        d = len(self.axes)
        unknown = windows.start(self.axes)
        start, size = unknown.clone(), windows.psf.pixel_size_nm
        limits = (size / 2, size / 2, 1.5 * size)
        longest = unknown.new_tensor([limits[axis] for axis in self.axes] * k)
        prior = torch.cat([WEAK_NM**-2 * torch.ones_like(longest), longest.new_zeros(t * (k + 1))])
        prior = prior.expand_as(unknown).clone()
        prior[:, k * d : k * d + k * t] = windows.photons.flatten(1).clamp_min(100.0) ** -2
        covariance = torch.zeros(*unknown.shape, unknown.shape[1], dtype=torch.float64)
        moving = torch.arange(len(unknown))
        for _ in range(FISHER_STEPS):
            old = unknown[moving]
            score, information = windows[moving].fisher(old, self.axes)
            score = score + prior[moving] * (start[moving] - old)
            information = (information + torch.diag_embed(prior[moving])).double()
            scale = information.diagonal(dim1=1, dim2=2).rsqrt()
            correlation = information * scale[:, :, None] * scale[:, None]
            correlation.diagonal(dim1=1, dim2=2).add_(1e-4)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation))
            covariance[moving] = inverse * scale[:, :, None] * scale[:, None]
            change = (covariance[moving] @ score.double()[..., None])[..., 0].to(unknown)
            change[:, : k * d] = change[:, : k * d].clamp(-longest, longest)
            new = old + change
            new[:, k * d :] = torch.maximum(new[:, k * d :], 0.3 * old[:, k * d :])
            unknown[moving] = new
            sigma = covariance[moving].diagonal(dim1=1, dim2=2).sqrt()
            moving = moving[((new - old).abs() > NEAR * sigma).any(1)]
            if not len(moving):
                break
        nothing = covariance.new_zeros(len(unknown))
        return Moments(
            mean=unknown.double(),
            covariance=covariance,
            ess=nothing,
            n_samples=nothing,
            log_evidence=nothing,
        )

    def weighted(self, windows: Windows, proposal: Moments, n_samples: int, seed: int) -> _Sample:
        """Samples of a proposal, and their weights."""
        points, log_density = _points(n_samples, proposal.mean.shape[1], seed)
        root = torch.linalg.cholesky(proposal.covariance)
        samples = proposal.mean[:, None] + points @ root.mT
        log_volume = root.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        log_prob = self.log_prob(windows, samples.to(windows.xyz.dtype))
        return _Sample(samples, log_prob - log_density + log_volume)


class _Sample(NamedTuple):
    """Samples (n, m, q), and the logarithms (n, m) of their weights."""

    unknown: Tensor
    log_weight: Tensor

    def of(self, rows: Tensor) -> _Sample:
        return _Sample(self.unknown[rows], self.log_weight[rows])

    def tempered(self) -> Moments:
        """Moments at the lowest temperature at which a fair share of the samples counts."""
        moments = self.moments()
        for temperature in TEMPERATURES:
            few = torch.nonzero(moments.ess < FAIR)[:, 0]
            if not len(few):
                break
            moments.put(
                few, _Sample(self.unknown[few], self.log_weight[few] / temperature).moments()
            )
        return moments

    def moments(self) -> Moments:
        """Weighted mean and covariance."""
        log_weight = self.log_weight
        total = log_weight.logsumexp(1, keepdim=True)
        weight = (log_weight - total).exp().nan_to_num(0.0)
        mean = (weight[:, None] @ self.unknown)[:, 0]
        apart = self.unknown - mean[:, None]
        covariance = (apart * weight[..., None]).mT @ apart
        m = weight.shape[1]
        ess = (m * weight.square().sum(1).clamp_min(1 / m)).reciprocal()
        ess = ess.where(total[:, 0].isfinite(), 0.0)
        evidence = total[:, 0] - math.log(m)
        return Moments(
            mean=mean,
            covariance=covariance,
            ess=ess,
            n_samples=torch.full_like(ess, m),
            log_evidence=evidence,
        )


def _sampled(windows: Windows, model: Model, n_samples: int, seed: int) -> Moments:
    """Moments of the posteriors in some windows."""
    modes = model.mode(windows)
    # where no sample is possible, the mode with its information stays, and an ESS of 0
    found = Moments(**{f.name: getattr(modes, f.name).clone() for f in fields(modes)})
    at_once = max(1, UNKNOWNS_AT_ONCE // n_samples)
    for rows in torch.arange(len(modes.mean)).split(at_once):
        first = model.weighted(windows[rows], modes[rows], n_samples, seed)
        found.put(rows, first.moments())
        rest = torch.nonzero(found.ess[rows] < FINE)[:, 0]
        if len(rest):
            proposal = _adapted(modes[rows[rest]], first.of(rest))
            last = model.weighted(windows[rows[rest]], proposal, n_samples, seed + 2)
            found.put(rows[rest], last.moments())
    hard = torch.nonzero(found.ess < ENOUGH)[:, 0]
    for rows in hard.split(max(1, at_once // LONGER)) if len(hard) else ():
        proposal = modes[rows]
        for again in range(ROUNDS):
            last = model.weighted(windows[rows], proposal, LONGER * n_samples, seed + again)
            found.put(rows, last.moments())
            still = found.ess[rows] < ENOUGH
            if not bool(still.any()):
                break
            rows, proposal = rows[still], _adapted(proposal, last)[still]
    return found


def _adapted(proposal: Moments, sample: _Sample) -> Moments:
    """A proposal with the moments of its weighted samples, as far as they are known."""
    moments = sample.tempered()
    n = (moments.ess * moments.n_samples)[:, None]
    q = proposal.mean.shape[1]
    share = n / (n + q * (q + 3))
    mean = proposal.mean.lerp(moments.mean, share)
    covariance = proposal.covariance.lerp(moments.covariance, share[..., None])
    return replace(proposal, mean=mean, covariance=covariance)


@cache
def _points(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (n, d) of a standard normal, a share of them of a wider one, and the log density (n,)
    of the mixture, without its constant.

    They come from a scrambled Sobol sequence (Owen, J. Complexity 14, 466, 1998), in pairs of
    opposite sign, and are made to have exactly the covariance of the normal: means and covariances
    of a Gaussian posterior are then found without error.
    """
    wide = 2 * round(WIDE_SHARE * n / 2)
    parts = [_normal(n - wide, d, seed), WIDE * _normal(wide, d, seed + 1)]
    points = torch.cat(parts)
    points = points[points[:, 0].argsort()]
    square = points.square().sum(1)
    narrow = math.log(1 - WIDE_SHARE) - square / 2
    broad = math.log(WIDE_SHARE) - d * math.log(WIDE) - square / (2 * WIDE**2)
    return points, torch.logaddexp(narrow, broad)


def _normal(n: int, d: int, seed: int) -> Tensor:
    """(n, d) float64, n even."""
    uniform = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n // 2)
    half = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
    points = torch.cat([half, -half])
    if n < 4 * d:
        return points
    root = torch.linalg.cholesky(points.mT @ points / n)
    return torch.linalg.solve_triangular(root, points.mT, upper=False).mT


def _listed(
    emitters: EmitterSet, posterior: Moments, axes: list[int], reach_nm: float
) -> EmitterSet:
    """The table with the moments of its molecules: position, photons and background.

    A molecule has one position in all its successive frames.
    """
    d, like = len(axes), emitters.xyz
    order = torch.tensor(axes).argsort().tolist()
    axes, order = sorted(axes), [*order, d, d + 1]
    mean, covariance = posterior.mean[:, order], posterior.covariance[:, order][:, :, order]
    if len(emitters):
        mean, covariance = on_tracks(emitters, mean, covariance, d=d, reach_nm=reach_nm)
    sigma = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    whole = covariance.new_full((len(emitters), 4, 4), torch.nan)
    known = torch.tensor([*axes, 3])
    scale = sigma[:, :, None] * sigma[:, None]
    whole[:, known[:, None], known] = (covariance / scale)[:, : d + 1, : d + 1]
    xyz, xyz_sigma = like.clone(), torch.full_like(like, torch.nan)
    xyz[:, axes], xyz_sigma[:, axes] = mean[:, :d].to(like), sigma[:, :d].to(like)
    return replace(
        emitters,
        xyz=xyz,
        photons=mean[:, d].to(like),
        background=mean[:, d + 1].to(like),
        xyz_sigma=xyz_sigma,
        photons_sigma=sigma[:, d].to(like),
        xyz_95=None,
        photons_95=None,
        correlation=correlations(whole).to(like),
        ess=posterior.ess.to(like),
    )
