"""SetPosterior: a multi-Bernoulli distribution over the set of emitters in each frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d

from decode.emitters import EmitterSet

__all__ = ["SetPosterior"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
LEAST_SHARE = 0.02
"""pixels of a smaller probability are part of no molecule"""
ROUNDS = 3
"""rounds in which pixels are joined to molecules; a pixel may belong to as many molecules"""
ROUNDING = 1e-15
"""rounding error of the probabilities of counts"""


@final
@dataclass(frozen=True, kw_only=True)
class SetPosterior:
    """p(set of emitters | frames): every pixel owns its area and holds at most one emitter.

    Independently in each pixel an emitter exists with probability p; if it does, x and y are
    Gaussian truncated to the pixel's area, photons (and z) are Gaussian.  As areas do not overlap,
    there is only one assignment of a set of emitters to pixels, so the density of a finite set
    (Mahler, Statistical Multisource-Multitarget Information Fusion, 2007, ch. 11.3.4) is one
    product without a sum over associations, and `log_prob` is exact and cheap.  An emitter near a
    border is spread over both pixels with probabilities that add up to that of the one molecule;
    the truncation keeps its Gaussian the same on either side, and `point_estimate` joins the two.

    All tensors are (n_frames, y, x), per-axis ones (n_frames, axis, y, x).

    Example:
        One molecule in the middle of a frame of 5 x 5 pixels:

        >>> light = torch.full((1, 5, 5), 1000.0)
        >>> logit = torch.full((1, 5, 5), -12.0)
        >>> logit[0, 2, 2] = 6.0
        >>> posterior = SetPosterior(
        ...     logit=logit,
        ...     offset_px=torch.zeros(1, 2, 5, 5),
        ...     offset_sigma_px=torch.full((1, 2, 5, 5), 0.1),
        ...     photons=light,
        ...     photons_sigma=light / 10,
        ...     background=light / 100,
        ...     pixel_size_nm=100.0,
        ... )
        >>> molecules = posterior.point_estimate()
        >>> molecules.xyz[0, :2].tolist(), round(float(molecules.xyz_sigma[0, 0]), 1)
        ([250.0, 250.0], 10.0)
        >>> round(float(posterior.count_pmf()[0, 1]), 3)
        0.997
    """

    logit: Tensor
    """log(p / (1 - p)) of an emitter in the pixel"""
    offset_px: Tensor
    """(n_frames, 2, y, x) centre (x, y) of the Gaussian before truncation, from that of the
    pixel"""
    offset_sigma_px: Tensor
    """(n_frames, 2, y, x) standard deviations of that Gaussian"""
    photons: Tensor
    photons_sigma: Tensor
    background: Tensor
    """photons per pixel, a point estimate"""
    z_nm: Tensor | None = None
    z_sigma_nm: Tensor | None = None
    pixel_size_nm: float
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logit)

    def __getitem__(self, frames: slice) -> SetPosterior:
        """The posterior of some of the frames."""
        return replace(self, **{name: m[frames] for name, m in self._maps().items()})

    def to(self, device: torch.device | str) -> SetPosterior:
        """The same posterior on another device."""
        return replace(self, **{name: m.to(device) for name, m in self._maps().items()})

    def crop(self, rows: slice, columns: slice) -> SetPosterior:
        """The posterior of a part of the field; its positions count from the corner of the part."""
        return replace(self, **{name: m[..., rows, columns] for name, m in self._maps().items()})

    def where(self, usable: Tensor) -> SetPosterior:
        """The same posterior, without emitters in frames where (n_frames,) `usable` is False."""
        return replace(self, logit=self.logit.masked_fill(~usable[:, None, None], -torch.inf))

    @staticmethod
    def cat(parts: Sequence[SetPosterior], dim: int = 0) -> SetPosterior:
        """One posterior from several with the same pixel size and axes.

        Args:
            parts: posteriors of successive frames, or of adjacent parts of the field.
            dim: 0 for frames, -2 for parts from top to bottom, -1 from left to right.
        """
        every = [part._maps() for part in parts]
        maps: dict[str, Any] = {name: torch.cat([m[name] for m in every], dim) for name in every[0]}
        return replace(parts[0], **maps)

    def _maps(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: m for name, m in values.items() if isinstance(m, Tensor)}

    @property
    def probability(self) -> Tensor:
        """(n_frames, y, x) probability of an emitter in the pixel."""
        return torch.sigmoid(self.logit)

    # -- density -----------------------------------------------------------------------------------

    def log_prob(self, emitters: EmitterSet) -> Tensor:
        """Log density of the set of emitters of each frame.

        Args:
            emitters: any number in each frame, in any order, in single or double precision;
                `frame` indexes this posterior's frames.

        Returns:
            (n_frames,) natural logarithm; the density is per nm^2 (and nm of z) and photon for
            every emitter.  Minus infinity where two emitters share a pixel or one lies outside the
            frame: such a set has no density (`thin` keeps the emitters that have one).
        """
        n, height, width = self.logit.shape
        log_density = logsigmoid(-self.logit).sum((1, 2))
        if len(emitters) == 0:
            return log_density
        pixel, offset, inside = self._pixels(emitters)
        owner = (emitters.frame * height + pixel[:, 1]) * width + pixel[:, 0]
        # emitters outside stay in the batch, for to leave them out is to wait for a GPU
        owner, offset = owner.where(inside, 0), offset.where(inside[:, None], 0.0)
        sharing = torch.zeros_like(self.logit, dtype=torch.int64).view(-1)
        sharing = sharing.index_add(0, owner, inside.long())
        wrong = ~inside | (sharing[owner] > 1)
        impossible = sharing.new_zeros(n).index_add(0, emitters.frame, wrong.long()) > 0

        def at(m: Tensor) -> Tensor:  # (n, y, x) -> (emitters,)
            return m.reshape(-1)[owner]

        # log p - log(1 - p): the sum above counted the pixel as empty
        terms = at(self.logit) - 2 * math.log(self.pixel_size_nm)
        centre, sigma = (
            m.movedim(1, -1).reshape(-1, 2)[owner] for m in (self.offset_px, self.offset_sigma_px)
        )
        terms = terms + (_log_normal(offset, centre, sigma) - _log_mass(centre, sigma)).sum(1)
        terms = terms + _log_normal(emitters.photons, at(self.photons), at(self.photons_sigma))
        if self.z_nm is not None and self.z_sigma_nm is not None:
            terms = terms + _log_normal(emitters.xyz[:, 2], at(self.z_nm), at(self.z_sigma_nm))
        terms = terms.where(inside, 0.0)
        log_density = log_density.to(terms.dtype).index_add(0, emitters.frame, terms)
        return log_density.masked_fill(impossible, -torch.inf)

    def thin(self, emitters: EmitterSet) -> EmitterSet:
        """The emitters that can have a density: inside the frame, the brightest of a pixel."""
        pixel, _, inside = self._pixels(emitters)
        _, height, width = self.logit.shape
        owner = (emitters.frame * height + pixel[:, 1]) * width + pixel[:, 0]
        owner = owner.where(inside, -1)
        order = torch.argsort(emitters.photons, descending=True)
        order = order[torch.argsort(owner[order], stable=True)]
        owner = owner[order]
        before = torch.cat([torch.full_like(owner[:1], -1), owner[:-1]])
        return emitters[order[torch.nonzero(owner != before)[:, 0]]]

    def _pixels(self, emitters: EmitterSet) -> tuple[Tensor, Tensor, Tensor]:
        """Pixel (x, y) of each emitter, offset from its centre in pixels, and whether it is in the
        frame."""
        _, height, width = self.logit.shape
        position = emitters.xyz[:, :2] / self.pixel_size_nm
        pixel = torch.floor(position).long()
        inside = (pixel >= 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
        return pixel, position - pixel - 0.5, inside

    # -- samples and counts ------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, rng: torch.Generator | None = None) -> EmitterSet:
        """Draw one set of emitters for every frame, from the density of `log_prob`."""
        uniform = torch.rand(self.logit.shape, generator=rng, device=self.logit.device)
        frame, row, column = torch.nonzero(uniform < self.probability, as_tuple=True)

        def normal(mean: Tensor, sigma: Tensor) -> Tensor:
            noise = torch.randn(len(frame), generator=rng, device=frame.device, dtype=torch.float64)
            return mean[frame, row, column].double() + noise * sigma[frame, row, column].double()

        xyz = torch.zeros(len(frame), 3, dtype=torch.float64, device=frame.device)
        for axis, pixel in ((0, column), (1, row)):
            centre = self.offset_px[frame, axis, row, column].double()
            width = self.offset_sigma_px[frame, axis, row, column].double()
            u = torch.rand(len(frame), generator=rng, device=frame.device, dtype=torch.float64)
            # inverse distribution function of the truncated normal, in the tail that ndtr resolves
            sign = torch.where(centre > 0, -1.0, 1.0)
            low, high = (torch.special.ndtr((edge - sign * centre) / width) for edge in (-0.5, 0.5))
            offset = sign * (sign * centre + width * torch.special.ndtri(low + u * (high - low)))
            offset = offset.clamp(-0.5 + 1e-9, 0.5 - 1e-9)
            xyz[:, axis] = (pixel + 0.5 + offset) * self.pixel_size_nm
        if self.z_nm is not None and self.z_sigma_nm is not None:
            xyz[:, 2] = normal(self.z_nm, self.z_sigma_nm)
        photons = normal(self.photons, self.photons_sigma)
        return EmitterSet(frame=frame, xyz=xyz, photons=photons, metadata=self.metadata)

    def count_pmf(self, largest: int | None = None) -> Tensor:
        """Probability of each number of emitters in a frame: Poisson-binomial over the pixels.

        By the discrete Fourier transform of the characteristic function (Hong, Comput. Stat. Data
        Anal. 59, 2013).

        Args:
            largest: largest count that is listed; by default ten standard deviations above the
                mean.

        Returns:
            (n_frames, largest + 1) float64; rows sum to 1 but for what lies beyond `largest`.
            Probabilities below 1e-15, the rounding error, are set to about that value.
        """
        p = self.probability.detach().double().flatten(1)
        spread = (p * (1 - p)).sum(1).sqrt()
        likely = int(min(p.shape[1], math.ceil(float((p.sum(1) + 10 * spread).max())) + 10))
        largest = likely if largest is None else largest
        # the transform folds counts at or above its length back onto the small ones
        length = max(largest, likely) + 1
        angle = 2 * math.pi * torch.arange(length, device=p.device, dtype=p.dtype) / length
        phase = torch.polar(torch.ones_like(angle), angle)
        characteristic = torch.stack([torch.log(1 - p + p * w).sum(1) for w in phase], 1).exp()
        pmf = torch.fft.fft(characteristic, dim=1).real / length
        return pmf[:, : largest + 1].clamp_min(ROUNDING)

    # -- molecules ---------------------------------------------------------------------------------

    @torch.no_grad()
    def point_estimate(self, threshold: float = 0.5, *, first_frame: int = 0) -> EmitterSet:
        """One row per molecule: the moments of the posterior, given that the molecule exists.

        A molecule near a border holds probability in several pixels.  From the largest
        probability down, a pixel joins the shares of its neighbours whose mean lies within a pixel
        of its own, until the molecule's probability is 1; what a neighbour has left over is a
        molecule of its own.

        Args:
            threshold: molecules with a larger probability are listed.
            first_frame: number of this posterior's first frame in the movie.

        Returns:
            Molecules in the order of frames, with mean, standard deviations, probability and
            background.
        """
        p = self.probability
        # a molecule is no more than the pixels around a peak: the rest need not be looked at
        near_peak = max_pool2d(p, 3, stride=1, padding=1) > threshold / 5
        frame, row, column = torch.nonzero((p > LEAST_SHARE) & near_peak, as_tuple=True)
        mean, variance = self._moments(frame, row, column)
        share = p[frame, row, column].double()
        beside = _pixels_beside(frame, row, column, shape=p.shape)
        reach_nm = self.pixel_size_nm
        molecules = _joined(share, mean, variance, beside, reach_nm=reach_nm, threshold=threshold)
        rows, centre, sigma = molecules.pixel, molecules.mean, molecules.sigma
        z_sigma = sigma[:, 3:4]
        if self.z_nm is None:
            z_sigma = torch.full_like(z_sigma, torch.nan)
        return EmitterSet(
            frame=frame[rows] + first_frame,
            xyz=torch.stack([centre[:, 0], centre[:, 1], centre[:, 3]], 1).float(),
            photons=centre[:, 2].float(),
            background=self.background[frame[rows], row[rows], column[rows]],
            probability=molecules.probability.clamp(max=1.0).float(),
            xyz_sigma=torch.cat([sigma[:, :2], z_sigma], 1).float(),
            photons_sigma=sigma[:, 2].float(),
            metadata=self.metadata,
        )

    def _moments(self, frame: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of (x, y, photons, z) in m pixels, nm and photons: (m, 4) float64."""
        means, variances = [], []
        for axis, pixel in ((0, column), (1, row)):
            offset, variance = _truncated_moments(
                self.offset_px[frame, axis, row, column].double(),
                self.offset_sigma_px[frame, axis, row, column].double(),
            )
            means.append((pixel + 0.5 + offset) * self.pixel_size_nm)
            variances.append(variance * self.pixel_size_nm**2)
        means.append(self.photons[frame, row, column].double())
        variances.append(self.photons_sigma[frame, row, column].double() ** 2)
        if self.z_nm is not None and self.z_sigma_nm is not None:
            means.append(self.z_nm[frame, row, column].double())
            variances.append(self.z_sigma_nm[frame, row, column].double() ** 2)
        else:
            means.append(torch.zeros_like(means[0]))
            variances.append(torch.zeros_like(means[0]))
        return torch.stack(means, 1), torch.stack(variances, 1)


class _Molecules(NamedTuple):
    """Molecules joined from pixels, in the order of the pixels."""

    pixel: Tensor
    """(n,) pixel that holds the largest share"""
    probability: Tensor
    """(n,)"""
    mean: Tensor
    """(n, 4) mean of x, y, photons and z"""
    sigma: Tensor
    """(n, 4)"""


def _pixels_beside(frame: Tensor, row: Tensor, column: Tensor, *, shape: Sequence[int]) -> Tensor:
    """(m, 8) numbers of the pixels around each of m pixels; -1 for those that are not listed."""
    n, height, width = shape
    number = frame.new_full((n, height + 2, width + 2), -1)
    number[frame, row + 1, column + 1] = torch.arange(len(frame), device=frame.device)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    around = [number[frame, row + 1 + dy, column + 1 + dx] for dy, dx in steps]
    return torch.stack(around, 1)


def _joined(
    share: Tensor,
    mean: Tensor,
    variance: Tensor,
    beside: Tensor,
    *,
    reach_nm: float,
    threshold: float,
) -> _Molecules:
    """Molecules from the shares of pixels.

    Args:
        share: (m,) probability in each pixel.
        mean, variance: (m, 4) of the molecule in each pixel.
        beside: (m, 8) from `_pixels_beside`.
        reach_nm: pixels whose means are further apart show two molecules.
        threshold: molecules of a smaller probability are left out.
    """
    m = len(share)
    index = torch.arange(m, device=share.device)
    exists, beside = beside >= 0, beside.clamp_min(0)
    distance = (mean[beside, :2] - mean[:, None, :2]).norm(dim=-1)
    near = exists & (distance < reach_nm)
    found = []
    for _ in range(ROUNDS if m else 0):
        theirs = torch.where(exists, share[beside], 0.0)
        tied = (theirs == share[:, None]) & (beside > index[:, None])
        lower = (theirs < share[:, None]) | tied | ~exists
        peak = (share > threshold / 5) & lower.all(1)
        # every other pixel offers its share to the nearest peak beside it
        offer = torch.where(near & peak[beside] & ~peak[:, None], distance, torch.inf)
        to = torch.where(torch.isfinite(offer.amin(1)), beside[index, offer.argmin(1)], -1)
        joins = near & peak[:, None] & (to[beside] == index[:, None])
        offered = torch.where(joins, theirs, 0.0)
        fraction = ((1 - share) / offered.sum(1).clamp_min(1e-12)).clamp(0, 1)
        weight = torch.cat([share[:, None], offered * fraction[:, None]], 1)
        total = weight.sum(1)
        molecule = peak & (total > threshold)
        pixel = index[molecule]
        members = torch.cat([index[:, None], beside], 1)[pixel]
        w = (weight[pixel] / total[pixel, None])[..., None]
        centre = (w * mean[members]).sum(1)
        spread = (w * (variance[members] + (mean[members] - centre[:, None]) ** 2)).sum(1)
        found.append(_Molecules(pixel, total[pixel], centre, spread.sqrt()))
        used = molecule[to.clamp_min(0)] & (to >= 0)
        taken = torch.where(used, fraction[to.clamp_min(0)], 0.0)
        share = torch.where(peak, 0.0, share * (1 - taken))
    if not found:
        return _Molecules(index, share, mean, variance)
    together = [torch.cat(parts) for parts in zip(*found, strict=True)]
    order = torch.argsort(together[0])
    return _Molecules(*(values[order] for values in together))


def _log_normal(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log density of a normal distribution."""
    return -0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - LOG_SQRT_2PI


def _log_mass(centre: Tensor, sigma: Tensor) -> Tensor:
    """Log probability of a normal variate in [-0.5, 0.5]; both tails keep full precision."""
    # mirrored so that the interval lies in the left tail, which log_ndtr resolves
    distance = centre.abs()
    low = torch.special.log_ndtr((-0.5 - distance) / sigma)
    high = torch.special.log_ndtr((0.5 - distance) / sigma)
    return high + torch.log1p(-torch.exp((low - high).clamp(max=-1e-6)))


def _truncated_moments(centre: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a normal variate truncated to [-0.5, 0.5].

    Johnson, Kotz and Balakrishnan, 1994, 13.10.
    """
    log_mass = _log_mass(centre, sigma)
    low, high = (-0.5 - centre) / sigma, (0.5 - centre) / sigma
    density_low = torch.exp(-0.5 * low**2 - LOG_SQRT_2PI - log_mass)
    density_high = torch.exp(-0.5 * high**2 - LOG_SQRT_2PI - log_mass)
    shift = density_low - density_high
    variance = sigma**2 * (1 + low * density_low - high * density_high - shift**2)
    # a uniform pixel has the largest variance; far tails cancel, and keep at least a trace
    return (centre + sigma * shift).clamp(-0.5, 0.5), variance.clamp(1e-8, 1 / 12)
