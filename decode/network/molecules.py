"""MoleculePosterior: independent molecules of each frame, joined from pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.network.counts import Counts, numbers
from decode.network.gaussians import TruncatedGaussians
from decode.network.recalibration import Corrected

__all__ = ["Joined", "MoleculePosterior", "joined", "pixels_beside"]

ROUNDS = 3
"""number of rounds in which pixels are joined to molecules"""
REACH_PX = 1.0
"""distance of the means of two pixels above which they show two molecules"""

FAINT_PART = 0.02
"""weight of a part of a molecule below which rows of a table do without it"""


@final
@dataclass(frozen=True, kw_only=True)
class MoleculePosterior:
    """p(set of molecules | frames): independent molecules with probabilities of existence.

    A multi-Bernoulli distribution (Mahler, Statistical Multisource-Multitarget Information Fusion,
    2007, ch. 11.3.4) as that of the pixels, but with one existence variable for a molecule that is
    spread over several pixels, whose position and photons are a mixture of truncated Gaussians.
    The expected number of molecules in a pixel is that of the pixels' own distribution; draws hold
    a molecule near a border once.

    From `SetPosterior.molecules`; all numbers are float64.

    Example:
        A molecule on the border of two pixels, which exists with a probability of 0.98:

        >>> half = TruncatedGaussians(
        ...     pixel=torch.tensor([[2, 2], [3, 2]]),
        ...     offset_px=torch.tensor([[0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64),
        ...     offset_sigma_px=torch.full((2, 2), 0.1, dtype=torch.float64),
        ...     photons=torch.full((2,), 1000.0, dtype=torch.float64),
        ...     photons_sigma=torch.full((2,), 50.0, dtype=torch.float64),
        ...     pixel_size_nm=100.0,
        ... )
        >>> posterior = MoleculePosterior(
        ...     frame=torch.tensor([0]),
        ...     probability=torch.tensor([0.98], dtype=torch.float64),
        ...     background=torch.tensor([10.0], dtype=torch.float64),
        ...     molecule=torch.tensor([0, 0]),
        ...     weight=torch.tensor([0.5, 0.5], dtype=torch.float64),
        ...     parts=half,
        ...     shape=(1, 5, 6),
        ... )
        >>> [round(float(p), 2) for p in posterior.counts().pmf(1)[0]]
        [0.02, 0.98]
        >>> left = torch.tensor([True, True, True, False, False, False]).expand(5, 6)
        >>> round(float(posterior.counts(left).mean), 2)
        0.49
    """

    frame: Tensor
    """(n,) int64, ascending"""
    probability: Tensor
    """(n,) probability that the molecule exists"""
    background: Tensor
    """(n,) photons per pixel, a point estimate"""
    molecule: Tensor
    """(m,) int64, ascending; molecule of each part, at most one in a pixel."""
    weight: Tensor
    """(m,) probability of the part, given that its molecule exists"""
    parts: TruncatedGaussians
    """position and photons, given the part"""
    shape: tuple[int, int, int]
    """frames, rows and columns of the posterior"""
    own_probability: Tensor | None = None
    """(n,) that the network states, where a correction has changed `probability`: it decides what a
    table lists"""
    correction: Corrected | None = None
    """of positions and photons, by simulations; that of the probability is applied"""
    spread: Tensor | None = None
    """(n,) relative standard deviation of a molecule's expected number, by an effect that all have
    in common (`counts.numbers`); None: 0"""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    def above(self, threshold: float) -> MoleculePosterior:
        """The molecules whose probability, as the network states it, exceeds a threshold.

        A corrected one says how many are true, and leaves open which molecules a table gains by:
        in crowds it lists more of them, whose positions are less certain.
        """
        own = self.own_probability
        kept = (self.probability if own is None else own) > threshold
        rows, part = torch.nonzero(kept)[:, 0], torch.nonzero(kept[self.molecule])[:, 0]
        number = torch.cumsum(kept, 0) - 1
        return replace(
            self,
            frame=self.frame[rows],
            probability=self.probability[rows],
            own_probability=None if own is None else own[rows],
            background=self.background[rows],
            molecule=number[self.molecule[part]],
            weight=self.weight[part],
            parts=self.parts[part],
            correction=None if self.correction is None else self.correction[rows],
            spread=None if self.spread is None else self.spread[rows],
        )

    def corrected(self, correction: Corrected) -> MoleculePosterior:
        """The posterior with the corrections of a `Recalibration`.

        Regions and maps take positions as they were.
        """
        return replace(
            self,
            probability=correction.probability,
            own_probability=self.probability,
            correction=correction,
            spread=correction.spread,
        )

    # -- read-outs ---------------------------------------------------------------------------------

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of (x, y, photons, z) in nm and photons, given that a
        molecule exists: (n, 4) each, without corrections; z is 0 in 2D.

        Parts that are fainter than `FAINT_PART` do not count: as often as not they are of other
        molecules, and would widen the Gaussian that a row stands for.
        """
        means, variances = self.parts.moments()
        weight = torch.where(self.weight < FAINT_PART, 0.0, self.weight)
        weight = (weight / self._sum(weight)[self.molecule])[:, None]
        mean = self._sum(weight * means)
        spread = variances + (means - mean[self.molecule]) ** 2
        return mean, self._sum(weight * spread).sqrt()

    def table(self, *, first_frame: int = 0) -> EmitterSet:
        """One row per molecule: the moments of its mixture, given that it exists.

        Where there are corrections, standard deviations are the half-widths of the intervals that
        hold 68 % of the errors, and those that hold 95 % are columns of their own.

        Args:
            first_frame: number of this posterior's first frame in the movie.
        """
        mean, sigma = self.moments
        half_95 = None
        if self.correction is not None:
            half_95 = sigma * self.correction.half_95
            sigma = sigma * self.correction.half_68
            mean = self.correction.placed(mean)

        def by_axis(values: Tensor) -> Tensor:
            z = (
                torch.full_like(values[:, 3], torch.nan)
                if self.parts.z_nm is None
                else values[:, 3]
            )
            return torch.stack([values[:, 0], values[:, 1], z], 1).float()

        return EmitterSet(
            frame=self.frame + first_frame,
            xyz=mean[:, [0, 1, 3]].float(),
            photons=mean[:, 2].float(),
            background=self.background.float(),
            probability=self.probability.float(),
            xyz_sigma=by_axis(sigma),
            photons_sigma=sigma[:, 2].float(),
            xyz_95=None if half_95 is None else by_axis(half_95),
            photons_95=None if half_95 is None else half_95[:, 2].float(),
            metadata=self.metadata,
        )

    def _sum(self, values: Tensor) -> Tensor:
        """(n, ...) sums over the parts of each molecule, of (m, ...) values."""
        return values.new_zeros(len(self), *values.shape[1:]).index_add(0, self.molecule, values)

    @torch.no_grad()
    def sample(
        self,
        rng: torch.Generator | None = None,
        *,
        first_frame: int = 0,
        effect: float | None = None,
    ) -> EmitterSet:
        """Draw one set of molecules for every frame.

        Args:
            rng: source of randomness, on the device of the posterior.
            first_frame: number of this posterior's first frame in the movie.
            effect: what the numbers of all molecules have in common, a standard normal variate:
                the same for all parts of a movie; None draws it.

        Returns:
            Molecules in the order of frames, with positions, photons and background.  Others that
            cannot be told from a molecule are drawn as this one is.
        """
        device, dtype = self.weight.device, torch.float64
        uniform = partial(torch.rand, generator=rng, device=device, dtype=dtype)
        exists, others = self.probability, torch.zeros_like(self.probability)
        if self.spread is not None:
            if effect is None:
                effect = float(torch.randn(1, generator=rng, device=device, dtype=dtype))
            exists, others = numbers(exists, self.spread, effect)
        number = (uniform(len(self)) < exists).long() + torch.poisson(others, rng).long()
        rows = torch.arange(len(self), device=device).repeat_interleave(number)
        # weights of a molecule add up to 1: those of the i-th fill i .. i + 1 of the sums
        place = rows + uniform(len(rows))
        part = torch.searchsorted(self.weight.cumsum(0), place, right=True)
        first = torch.searchsorted(self.molecule, rows)
        last = torch.searchsorted(self.molecule, rows, right=True) - 1
        xyz, photons = self.parts[part.clamp(first, last)].sample(rng)
        if self.correction is not None:
            drawn = torch.stack([xyz[:, 0], xyz[:, 1], photons, xyz[:, 2]], 1)
            mean, sigma = (values[rows] for values in self.moments)
            drawn = self.correction[rows].drawn(drawn, mean, sigma)
            xyz, photons = drawn[:, [0, 1, 3]], drawn[:, 2]
        return EmitterSet(
            frame=self.frame[rows] + first_frame,
            xyz=xyz,
            photons=photons,
            background=self.background[rows],
            metadata=self.metadata,
        )

    # -- counts ------------------------------------------------------------------------------------

    def counts(self, region: Tensor | None = None) -> Counts:
        """How many molecules there are in each frame, or in a region of it.

        Args:
            region: (k * rows, k * columns) bool, the pixels of the region, or the k x k equal parts
                of the pixels; None: all.

        Raises:
            ValueError: if the region does not cover the frame by equal parts of its pixels.
        """
        inside = None
        if region is not None:
            inside = self._sum(self.weight * self._mass_in(region)).clamp(0, 1)
        return Counts(
            frame=self.frame,
            probability=self.probability.clamp(0, 1),
            n_frames=self.shape[0],
            inside=inside,
            spread=self.spread,
        )

    def _mass_in(self, region: Tensor) -> Tensor:
        """(m,) probability that a part's molecule lies in the region."""
        _, height, width = self.shape
        cuts = region.shape[0] // height
        if cuts == 0 or tuple(region.shape) != (cuts * height, cuts * width):
            raise ValueError(
                f"the region is {tuple(region.shape)} (y, x), the frames are {(height, width)}; "
                "state it for every pixel, or for k x k parts of every pixel"
            )
        column, row = self.parts.pixel.T
        cut = region.view(height, cuts, width, cuts).movedim(2, 1)[row, column]
        return (cut * self._mass(cuts)).sum((1, 2))

    def _mass(self, cuts: int) -> Tensor:
        """(m, y, x) probability of each of cuts x cuts parts of a part's pixel."""
        return self.parts.mass(1, cuts)[:, :, None] * self.parts.mass(0, cuts)[:, None, :]

    def expected_map(self, cuts: int = 1) -> tuple[Tensor, Tensor]:
        """Expected number of molecules of all frames, and its standard deviation, on a grid.

        Args:
            cuts: parts of a pixel along each axis.

        Returns:
            Two maps of (cuts * rows, cuts * columns); counts in two parts of the grid are
            correlated, by the molecules that may lie in either.
        """
        _, height, width = self.shape
        column, row = self.parts.pixel.T
        probability = self.probability[self.molecule][:, None, None]
        share = self.weight[:, None, None] * self._mass(cuts)
        mass = probability * share

        def on_grid(values: Tensor) -> Tensor:
            pixels = values.new_zeros(height * width, cuts, cuts)
            pixels = pixels.index_add(0, row * width + column, values)
            grid = pixels.view(height, width, cuts, cuts).movedim(1, 2)
            return grid.reshape(height * cuts, width * cuts)

        variance = on_grid(mass * (1 - mass))
        if self.spread is not None:
            spread = self.spread[self.molecule][:, None, None]
            variance = variance + on_grid(spread * mass).square()
        return on_grid(mass), variance.sqrt()


class Joined(NamedTuple):
    """Molecules that were joined from pixels, in the order of these."""

    pixel: Tensor
    """(n,) pixel that the molecule was joined around"""
    probability: Tensor
    """(n,)"""
    molecule: Tensor
    """(m,) molecule of each part"""
    member: Tensor
    """(m,) pixel of the part"""
    weight: Tensor
    """(m,) weight of the part; weights of a molecule add up to 1"""


def joined(share: Tensor, mean: Tensor, beside: Tensor, *, reach_nm: float) -> Joined:
    """Join the shares of pixels to molecules.

    From the largest share down, a pixel takes those of its neighbours whose mean lies within reach
    of its own, until they add up to 1.  The rest of a neighbour is a molecule of its own, so
    that no share is lost: of two molecules in neighbouring pixels, both are kept.

    Args:
        share: (m,) probability in each pixel.
        mean: (m, 2) x and y of the molecule in each pixel.
        beside: (m, 8) from `pixels_beside`.
        reach_nm: pixels whose means are further apart show two molecules.
    """
    m = len(share)
    index = torch.arange(m, device=share.device)
    exists, beside = beside >= 0, beside.clamp_min(0)
    distance = (mean[beside] - mean[:, None]).norm(dim=-1)
    near = exists & (distance < reach_nm)
    around = torch.cat([index[:, None], beside], 1)
    peaks, members, taken = [], [], []
    for _ in range(ROUNDS if m else 0):
        theirs = torch.where(exists, share[beside], 0.0)
        tied = (theirs == share[:, None]) & (beside > index[:, None])
        lower = (theirs < share[:, None]) | tied | ~exists
        peak = (share > 0) & lower.all(1)
        # every other pixel offers its share to the nearest peak beside it
        offer = torch.where(near & peak[beside] & ~peak[:, None], distance, torch.inf)
        to = torch.where(torch.isfinite(offer.amin(1)), beside[index, offer.argmin(1)], -1)
        joins = near & peak[:, None] & (to[beside] == index[:, None])
        offered = torch.where(joins, theirs, 0.0)
        fraction = ((1 - share) / offered.sum(1).clamp_min(1e-12)).clamp(0, 1)
        weight = torch.cat([share[:, None], offered * fraction[:, None]], 1)
        row, part = torch.nonzero((weight > 0) & peak[:, None], as_tuple=True)
        peaks.append(index[row])
        members.append(around[row, part])
        taken.append(weight[row, part])
        left = torch.where(to >= 0, 1 - fraction[to.clamp_min(0)], 1.0)
        share = torch.where(peak, 0.0, share * left)
    # what is left after the last round
    rest = torch.nonzero(share > 0)[:, 0]
    peak = torch.cat([*peaks, rest])
    weight = torch.cat([*taken, share[rest]])
    order = torch.argsort(peak, stable=True)
    pixel, molecule = torch.unique_consecutive(peak[order], return_inverse=True)
    weight, member = weight[order], torch.cat([*members, rest])[order]
    total = weight.new_zeros(len(pixel)).index_add(0, molecule, weight)
    return Joined(pixel, total.clamp(max=1.0), molecule, member, weight / total[molecule])


def pixels_beside(frame: Tensor, row: Tensor, column: Tensor, *, shape: Sequence[int]) -> Tensor:
    """(m, 8) numbers of the pixels around each of m pixels; -1 for those that are not listed."""
    n, height, width = shape
    number = frame.new_full((n, height + 2, width + 2), -1)
    number[frame, row + 1, column + 1] = torch.arange(len(frame), device=frame.device)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    around = [number[frame, row + 1 + dy, column + 1 + dx] for dy, dx in steps]
    return torch.stack(around, 1)
