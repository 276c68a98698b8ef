"""SetPosterior: a multi-Bernoulli distribution over the set of emitters in each frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d, pad

from decode.emitters import EmitterSet
from decode.network.counts import Counts
from decode.network.gaussians import TruncatedGaussians, log_mass, log_normal
from decode.network.molecules import REACH_PX, MoleculePosterior, joined, pixels_beside
from decode.network.recalibration import REACH_OF_CROWDS_PX, Recalibration, Stated

__all__ = ["SetPosterior"]

LEAST = 1e-3
"""probability of a pixel below which it is part of no molecule"""
PARTS = 9
"""most pixels that are joined to a molecule"""

NEAR_PX, AROUND_PX, FAR_PX, LIGHT_PX = 1, 4, REACH_OF_CROWDS_PX, 2
"""half the sides, less half a pixel, of the squares in which a recalibration counts the others,
and their light"""


class _Found(NamedTuple):
    """Molecules, and the pixel that each was joined around."""

    molecules: MoleculePosterior
    at: tuple[Tensor, Tensor, Tensor]
    """frame, row and column, (n,) each"""


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
    the truncation keeps its Gaussian the same on either side, and `molecules` joins the two.

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
    """mean photons of the emitter"""
    photons_sigma: Tensor
    """their standard deviation"""
    background: Tensor
    """photons per pixel, a point estimate"""
    z_nm: Tensor | None = None
    """mean depth; None in 2D"""
    z_sigma_nm: Tensor | None = None
    """its standard deviation; None in 2D"""
    pixel_size_nm: float
    """side of a pixel"""
    recalibration: Recalibration | None = None
    """correction of molecules, which leaves the density of pixels (`log_prob`) as it is"""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """facts that tables of its molecules keep"""

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
        terms = terms + (log_normal(offset, centre, sigma) - log_mass(centre, sigma)).sum(1)
        terms = terms + log_normal(emitters.photons, at(self.photons), at(self.photons_sigma))
        if self.z_nm is not None and self.z_sigma_nm is not None:
            terms = terms + log_normal(emitters.xyz[:, 2], at(self.z_nm), at(self.z_sigma_nm))
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
        """Draw one set of emitters for every frame, from the density of `log_prob`.

        A molecule near a border may be drawn in none or both of its pixels; draws of `molecules`
        hold it once.
        """
        uniform = torch.rand(self.logit.shape, generator=rng, device=self.logit.device)
        frame, row, column = torch.nonzero(uniform < self.probability, as_tuple=True)
        xyz, photons = self._emitters(frame, row, column).sample(rng)
        return EmitterSet(frame=frame, xyz=xyz, photons=photons, metadata=self.metadata)

    def count_pmf(self, largest: int | None = None) -> Tensor:
        """Probability of each number of emitters in a frame, under the density of `log_prob`.

        Args:
            largest: as for `Counts.pmf`.

        Returns:
            (n_frames, largest + 1), as from `Counts.pmf`.
        """
        p = self.probability.detach().double().flatten(1)
        frame = torch.arange(len(p), device=p.device).repeat_interleave(p.shape[1])
        return Counts(frame=frame, probability=p.flatten(), n_frames=len(p)).pmf(largest)

    # -- molecules ---------------------------------------------------------------------------------

    def molecules(self) -> MoleculePosterior:
        """The posterior of independent molecules, joined from pixels.

        A molecule near a border holds probability in several pixels.  From the largest
        probability down, a pixel joins the shares of its neighbours whose mean lies within a pixel
        of its own, until the molecule's probability is 1; what a neighbour has left over is a
        molecule of its own.  Pixels of a probability below 0.001 are passed over.
        """
        return self._recalibrated(self._joined(self.probability > LEAST))

    @torch.no_grad()
    def stated(self) -> tuple[MoleculePosterior, Stated]:
        """The molecules as the network states them, and what a recalibration is fitted to."""
        found = self._joined(self.probability > LEAST)
        return found.molecules, self._stated(found)

    def point_estimate(self, threshold: float = 0.5, *, first_frame: int = 0) -> EmitterSet:
        """One row per molecule: the moments of the posterior, given that the molecule exists.

        Args:
            threshold: those of `molecules` to which the network gives more are listed.
            first_frame: number of this posterior's first frame in the movie.

        Returns:
            Molecules in the order of frames, with mean, standard deviations, probability and
            background.
        """
        p = self.probability
        # a molecule is no more than a peak and the pixels around: the rest need not be looked at
        near_peak = max_pool2d(p, 3, stride=1, padding=1) > threshold / PARTS
        molecules = self._recalibrated(self._joined((p > LEAST) & near_peak))
        return molecules.above(threshold).table(first_frame=first_frame)

    @torch.no_grad()
    def _joined(self, chosen: Tensor) -> _Found:
        """The molecules of the pixels where (n_frames, y, x) `chosen` is True."""
        frame, row, column = torch.nonzero(chosen, as_tuple=True)
        parts = self._emitters(frame, row, column)
        mean, _ = parts.moments()
        found = joined(
            self.probability[frame, row, column].double(),
            mean[:, :2],
            pixels_beside(frame, row, column, shape=chosen.shape),
            reach_nm=REACH_PX * self.pixel_size_nm,
        )
        at = (frame[found.pixel], row[found.pixel], column[found.pixel])
        n, height, width = chosen.shape
        molecules = MoleculePosterior(
            frame=at[0],
            probability=found.probability,
            background=self.background[at].double(),
            molecule=found.molecule,
            weight=found.weight,
            parts=parts[found.member],
            shape=(n, height, width),
            metadata=self.metadata,
        )
        return _Found(molecules, at)

    def _recalibrated(self, found: _Found) -> MoleculePosterior:
        if self.recalibration is None:
            return found.molecules
        return found.molecules.corrected(self.recalibration.of(self._stated(found)))

    def _stated(self, found: _Found) -> Stated:
        molecules = found.molecules
        mean, sigma = molecules.moments
        p, at = self.probability.double(), found.at
        own, one = molecules.probability, torch.ones_like(p)
        near, around, far = (_sums_around(p, at, radius) for radius in (NEAR_PX, AROUND_PX, FAR_PX))
        light = _sums_around(p * self.photons, at, LIGHT_PX) - own * mean[:, 2]
        seen, close = (_sums_around(one, at, radius) for radius in (FAR_PX, AROUND_PX))
        return Stated(
            probability=own,
            beside=(near - own).clamp_min(0),
            around=(around - near).clamp_min(0),
            density=(far - around).clamp_min(0) / (seen - close).clamp_min(1),
            light_beside=light.clamp_min(0),
            mean=mean,
            sigma=sigma,
            background=molecules.background,
            pixel_size_nm=self.pixel_size_nm,
        )

    def _emitters(self, frame: Tensor, row: Tensor, column: Tensor) -> TruncatedGaussians:
        """The emitters of m pixels."""

        def at(m: Tensor) -> Tensor:
            return m[frame, row, column].detach().double()

        def at_by_axis(m: Tensor) -> Tensor:
            return m[frame, :, row, column].detach().double()

        return TruncatedGaussians(
            pixel=torch.stack([column, row], 1),
            offset_px=at_by_axis(self.offset_px),
            offset_sigma_px=at_by_axis(self.offset_sigma_px),
            photons=at(self.photons),
            photons_sigma=at(self.photons_sigma),
            z_nm=None if self.z_nm is None else at(self.z_nm),
            z_sigma_nm=None if self.z_sigma_nm is None else at(self.z_sigma_nm),
            pixel_size_nm=self.pixel_size_nm,
        )


def _sums_around(values: Tensor, at: tuple[Tensor, Tensor, Tensor], radius: int) -> Tensor:
    """(n,) sums of (n_frames, y, x) values in the squares around n pixels, which end with the
    frame."""
    frame, row, column = at
    _, height, width = values.shape
    # sums over all pixels above and to the left: any square is four of them
    sums = pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, bottom = (row - radius).clamp_min(0), (row + radius + 1).clamp_max(height)
    left, right = (column - radius).clamp_min(0), (column + radius + 1).clamp_max(width)
    below = sums[frame, bottom, right] - sums[frame, bottom, left]
    return below - sums[frame, top, right] + sums[frame, top, left]
