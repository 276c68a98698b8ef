"""Sample: frames of a movie with the molecules that were found in them, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from decode.defects import UsualFrames
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.likelihood.polish import windows_for
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.quality.evidence import Evidence
from decode.quality.lone import MISFITS, Crops, LoneMolecules, Pupil, nearer_to_one
from decode.quality.spots import Spots, tree_of
from decode.quality.trend import trend

__all__ = ["Sample"]

PAIRS = 32
"""number of pairs of successive frames in the sample, spread over the movie"""
WINDOW_PX = 256
"""largest side of the middle of the frames that is used"""
LONE_MOLECULES, AXIAL_MOLECULES = 256, 192
"""approximate number of lone molecules that are fitted, in 2D and in 3D, where each takes longer"""
INFORMATION, AXIAL_INFORMATION = 1.01, 1.25
"""largest ratio of the Cramer-Rao bound in the crop of a molecule to that in the whole patch, in 2D
and in 3D; in a smaller crop a wide image looks like background"""
APART = 0.75
"""least distance of a lone molecule to the nearest other one, in sides of the crop"""
NEAR_PX = 15
"""side of the square over which the background is averaged"""
STRUCTURE_PX = 5
"""side of the square over which a structure of the background is averaged that stays in place"""
FAINT = 0.3
"""largest light of molecules in a dark pixel, in standard deviations of its noise"""
SEEN = 5.0
"""standard deviations from which a spot of light is detected"""
MATTERS = 0.25
"""least light of a missed spot over that of a typical molecule, and least light that a molecule
lacks over what it states: rings and structures of the background are dimmer"""
SPOT_PX = 9
"""side of the square in which a spot is searched"""
AROUND_PX = 10.0
"""radius within which the density around a molecule is computed"""
OUTLIER = 4.0
"""standard deviations to which differences are clipped"""
FINE = torch.outer(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([1.0, -2.0, 1.0]))[None, None] / 6
"""mask for the finest detail of frames, which keeps the variance of independent noise; an objective
passes almost nothing of it, so that it holds neither structures nor missed molecules"""
FEWEST_DARK, FEWEST_PIXELS, FEWEST_TIMES, FEWEST_SPOTS = 4000, 500, 4, 30
"""fewest differences of dark pixels, dark pixels, pairs of frames of a pixel, and molecules of a
figure"""


@final
class Sample:
    """A sample of the frames of a movie and of their molecules: `see` all chunks, then ask for
    `evidence`.

    Pairs of successive frames, spread over the movie, are read again and compared with the
    molecules that were found in them.  Memory and time are bounded, however long the movie is.

    Args:
        movie: from `open_movie`; open until the last chunk is seen.
        psf: the PSF that the molecules were localized with.
        camera: its maps, if any, are as large as the movie's frames.
        pupil: the PSF with more spherical aberration; None: it is not known.
        stated: the camera as its user stated it, if offsets of pixels were subtracted in addition.
        region: rows and columns of the localization.
        axial: whether z was estimated.
        usual: statistics of frames that hold an image; None: all do.
    """

    @torch.no_grad()
    def __init__(
        self,
        movie: Movie,
        psf: PSF,
        camera: Camera,
        *,
        region: tuple[slice, slice],
        axial: bool,
        pupil: Pupil | None = None,
        stated: Camera | None = None,
        usual: UsualFrames | None = None,
    ) -> None:
        self._movie, self._psf, self._camera, self._usual = movie, psf, camera, usual
        self._axial, self._pupil = axial, pupil
        last = max(0, len(movie) - 2)
        self._pairs = np.unique(np.linspace(0, last, PAIRS).astype(int) // 2 * 2).tolist()
        self._rows, self._columns = (_middle(side) for side in region)
        most_lost = AXIAL_INFORMATION if axial else INFORMATION
        (self._side,) = windows_for(psf, camera, axial=axial, most=[most_lost])
        most = AXIAL_MOLECULES if axial else LONE_MOLECULES
        self._quota = math.ceil(most / max(1, len(self._pairs)))
        self._unstated = _offsets(camera, stated or camera, movie.shape[1:])
        self._excess = camera.typical_noise.excess
        self._seen_by = camera.crop(self._rows, self._columns)
        self._floor = self._seen_by.noise_floor.float().expand(
            self._rows.stop - self._rows.start, self._columns.stop - self._columns.start
        )
        self._kernel = _spot(psf)
        self._done = 0
        self._ends = _Ends()
        self._seen: list[_Pairs] = []

    def see(self, molecules: EmitterSet, frames_done: int) -> None:
        """Add the molecules of the next frames.

        Args:
            molecules: molecules of the frames since the last call.
            frames_done: number of frames of the movie up to these.

        Raises:
            OSError: if the movie cannot be read.
        """
        self._ends.see(molecules)
        start, self._done = self._done, frames_done
        pairs = [i for i in self._pairs if start <= i and i + 2 <= frames_done]
        inhabited = set(molecules.frame.unique().tolist()) if pairs else set()
        read = [(i, light) for i in pairs if (light := self._read(i, inhabited)) is not None]
        if read:
            self._look(molecules, [i for i, _ in read], torch.cat([light for _, light in read]))

    def _read(self, first: int, inhabited: set[int]) -> Tensor | None:
        """(2, y, x) photons of two frames within the window; None where one holds no image, as no
        frame with molecules does."""
        number = self._movie.frames.start + first
        adu = self._movie.read(first, first + 2).astype(np.float32)
        if self._usual is not None:
            if not inhabited.issuperset((number, number + 1)) and self._usual.unusable(adu, number):
                return None
            adu = self._usual.levelled(adu)
        return self._seen_by.to_photons(torch.from_numpy(adu[:, self._rows, self._columns])).float()

    @torch.no_grad()
    def _look(self, molecules: EmitterSet, pairs: Sequence[int], photons: Tensor) -> None:
        """Add pairs of frames.

        Args:
            molecules: of these frames and others.
            pairs: number in the movie of the first frame of each.
            photons: (2 * pairs, y, x) within the window.
        """
        numbers = torch.tensor([i + k for i in pairs for k in (0, 1)]) + self._movie.frames.start
        at = torch.searchsorted(numbers, molecules.frame.contiguous()).clamp_max(len(numbers) - 1)
        chosen = torch.nonzero(numbers[at] == molecules.frame)[:, 0]
        own = molecules[chosen]
        rows, columns = self._rows, self._columns
        corner = torch.tensor([columns.start, rows.start, 0.0]) * self._psf.pixel_size_nm
        placed = replace(own, frame=at[chosen], xyz=own.xyz - corner)
        parameters = self._psf.parameters_at(own.xyz)
        expected = render(
            self._psf,
            frame=placed.frame,
            xyz=placed.xyz,
            photons=own.photons,
            n_frames=len(numbers),
            shape=(rows.stop - rows.start, columns.stop - columns.start),
            parameters=parameters,
        )
        self._seen.append(
            _Pairs(
                numbers=numbers,
                molecules=placed,
                parameters=torch.zeros(len(own), 0) if parameters is None else parameters,
                light=self._seen_by.without_bad(photons),
                expected=expected,
            )
        )

    def _crops(self, pairs: _Pairs, background: Tensor, rng: np.random.Generator) -> list[Crops]:
        """Crops of some isolated spots, without the light of others and without the structure of
        the background.

        Args:
            pairs: frames.
            background: (frame, y, x) photons.
            rng: chooses the spots.
        """
        own, side, pixel_nm = pairs.molecules, self._side, self._psf.pixel_size_nm
        if not len(own):
            return []
        place = (own.xyz[:, :2] / pixel_nm).double().numpy()
        light = own.photons.double().numpy()
        spots = Spots.of(own.frame.numpy(), place, light, APART * side)
        corner = np.floor(spots.place).astype(int) - side // 2
        inside = (corner >= 0).all(1) & (corner + side <= pairs.light.shape[:0:-1]).all(1)
        quota = self._quota * len(pairs.numbers) // 2
        lone = rng.permutation(np.flatnonzero(inside & spots.alone))[:quota]
        several = rng.permutation(np.flatnonzero(inside & ~spots.alone))
        # as many as their share of all spots, and where hardly any is lone, no more than the quota
        share = min(1.0, quota / max(1, int((inside & spots.alone).sum())))
        several = several[: min(quota, math.ceil(share * len(several)))]
        # a model that knows depths makes one molecule of an image that is long
        chosen = lone if self._axial else np.concatenate([lone, several])
        if not len(chosen):
            return []
        spots, first = spots[chosen], torch.from_numpy(corner[chosen])
        rows = np.flatnonzero(spots.spot >= 0)
        of_spot, members = torch.from_numpy(spots.spot[rows]), own[torch.from_numpy(rows)]
        parameters = pairs.parameters[torch.from_numpy(rows)]
        corner_nm = pad(first.float() * pixel_nm, (0, 1))
        image = render(
            self._psf,
            frame=of_spot,
            xyz=members.xyz - corner_nm[of_spot],
            photons=members.photons,
            n_frames=len(chosen),
            shape=(side, side),
            parameters=parameters if parameters.shape[1] else None,
        )
        z = torch.zeros(len(chosen)).index_copy(0, of_spot, members.xyz[:, 2])
        middle = torch.from_numpy(spots.place).float()
        step = torch.arange(side)
        frame = torch.from_numpy(spots.frame)
        y, x = (first[:, 1:] + step)[:, :, None], (first[:, :1] + step)[:, None]
        cut = frame[:, None, None], y, x
        structure = background[cut]
        structure = structure - structure.mean((1, 2), keepdim=True)
        crops = Crops(
            frame=pairs.numbers[frame],
            place=middle,
            alone=torch.from_numpy(spots.alone),
            xyz=torch.cat([middle * pixel_nm, z[:, None]], 1) - corner_nm,
            light=pairs.residual[cut] - structure + image,
            floor=self._floor[y, x],
            parameters=parameters.new_zeros(len(chosen), parameters.shape[1]).index_copy(
                0, of_spot, parameters
            ),
        )
        return [crops]

    def _dark(self, pairs: _Pairs) -> Tensor:
        """(frame, y, x) bool; pixels without light of molecules."""
        rough = self._excess * pairs.level[:, None, None].clamp_min(0) + self._floor
        dark = pairs.expected < FAINT * rough.sqrt()
        if self._seen_by.bad is not None:
            dark &= ~self._seen_by.bad
        return dark

    def _structure(self, dark: Sequence[Tensor], around: Sequence[Tensor]) -> Tensor:
        """(y, x) background over that of its surroundings, less 1: what stays in place.

        It is the mean over all frames, clipped as molecules that were not found shine in few.
        """
        floor, excess = self._floor, self._excess
        beyond, whole = torch.zeros_like(floor), torch.zeros_like(floor)
        for pairs, is_dark, light in zip(self._seen, dark, around, strict=True):
            base = light.clamp_min(0.05)
            sigma = (excess * base + floor).sqrt()
            clipped = (pairs.residual - base).clamp(-OUTLIER * sigma, OUTLIER * sigma)
            beyond += (clipped * is_dark).sum(0)
            whole += (base * is_dark).sum(0)
        if not self._seen:
            return beyond
        smooth = partial(avg_pool2d, kernel_size=STRUCTURE_PX, stride=1, padding=STRUCTURE_PX // 2)
        return (smooth(beyond[None]) / smooth(whole[None]).clamp_min(1e-3))[0].clamp_min(-0.9)

    def _stated_light(self, expected: Tensor, at: Tensor) -> Tensor:
        """(n,) expected light in the spot around (n, 3) pixels of molecules."""
        near, border = _square(SPOT_PX)
        return pad(expected, border)[_of(at, near)] @ self._kernel.flatten()

    def evidence(self) -> Evidence:
        """The evidence of all that was added."""
        dark = [self._dark(pairs) for pairs in self._seen]
        around = [_around(pairs, is_dark) for pairs, is_dark in zip(self._seen, dark, strict=True)]
        structure = self._structure(dark, around)
        floor, excess = self._floor, self._excess
        dark_pixels, spots, crowds = _DarkPixels(), _Spots(), _Crowds()
        crops: list[Crops] = []
        rng = np.random.default_rng(0)
        unstated = self._unstated[self._rows, self._columns]
        for pairs, is_dark, light in zip(self._seen, dark, around, strict=True):
            background = light * (1 + structure)
            variance = excess * (pairs.expected + background).clamp_min(0.05) + floor
            residual = pairs.residual - background
            dark_pixels.see(residual, variance, excess, is_dark, unstated)
            spot = conv2d(residual[:, None], self._kernel, padding=SPOT_PX // 2)[:, 0]
            noise = conv2d(variance[:, None], self._kernel.square(), padding=SPOT_PX // 2)[:, 0]
            place = pairs.molecules.xyz[:, :2] / self._psf.pixel_size_nm
            at, inside = _pixels(pairs.molecules.frame, place, spot.shape)
            spots.see(
                spot,
                noise.sqrt(),
                at=at,
                stated=self._stated_light(pairs.expected, at),
                focused=pairs.molecules.photons[inside] * self._kernel.square().sum(),
            )
            crowds.see(pairs.molecules.frame, place)
            crops += self._crops(pairs, background, rng)
        evidence = Evidence(
            kind="gaussian" if self._psf.free_width else "measured",
            noise=dark_pixels.noise,
            pixel_offset=dark_pixels.offset,
            flicker=_flicker([pairs.level for pairs in self._seen]),
            missed=spots.missed,
            empty=spots.empty,
            density=crowds.per_px2 / (self._psf.pixel_size_nm / 1e3) ** 2,
            at_ends=self._ends.share if self._axial else math.nan,
            drift=self._drift_of_depth() if self._axial else math.nan,
        )
        if not crops:
            return evidence
        found = Crops.cat(crops)
        images = LoneMolecules.of(
            found, self._psf, self._camera, axial=self._axial, pupil=self._pupil
        )
        if not self._axial:  # of all spots, as through a lens hardly any is one molecule
            evidence = replace(evidence, elongation=images.elongation())
        lone = images[found.alone]
        if not lone.enough:
            return evidence
        misfit = lone.misfit()
        if self._psf.free_width:
            width = lone.fitted_width(self._psf, self._camera)
        else:
            width = nearer_to_one(*lone.width())
        spherical = math.nan
        if self._pupil is not None:
            spherical = lone.fitted_spherical(self._pupil, self._camera)
        # a PSF that fits is better than any other, whatever a few molecules say
        turn, turned = "", 0.0
        if misfit > MISFITS:
            turn, turned = lone.best_turn(self._psf, self._camera)
        return replace(
            evidence,
            n_lone=len(lone.crops),
            misfit=misfit,
            spherical=spherical,
            goodness=lone.goodness(),
            width=width,
            width_spread=lone.width_spread(),
            drift=evidence.drift if self._axial else images.drift(),
            turn=turn,
            turned=turned,
        )

    def _drift_of_depth(self) -> float:
        """Change of the depth of molecules over the movie, nm."""
        if not self._seen:
            return math.nan
        frame = torch.cat([pairs.numbers[pairs.molecules.frame] for pairs in self._seen])
        xyz = torch.cat([pairs.molecules.xyz for pairs in self._seen])
        z, place = xyz[:, 2], xyz[:, :2] / self._psf.pixel_size_nm
        return trend(z, torch.zeros_like(z), frame, place)


@final
@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Pairs of successive frames within the window, one after the other, and their molecules."""

    numbers: Tensor
    """(frame,) of the file"""
    molecules: EmitterSet
    """frames in the order of `numbers`, positions from the corner of the window"""
    parameters: Tensor
    """(n, p) parameters of the PSF; p = 0: its own"""
    light: Tensor
    """(frame, y, x) photons"""
    expected: Tensor
    """(frame, y, x) photons of the molecules"""

    @cached_property
    def residual(self) -> Tensor:
        return self.light - self.expected

    @cached_property
    def level(self) -> Tensor:
        """(frame,) usual light beside that of the molecules: mean of the middle half of the pixels,
        which is finer than a count, unlike a median; of every other row and column"""
        values = self.residual[:, ::2, ::2].flatten(1).sort(1).values
        quarter = values.shape[1] // 4
        return values[:, quarter : values.shape[1] - quarter].mean(1)


@final
class _DarkPixels:
    """Finest detail of pairs of frames, in pixels without molecules."""

    def __init__(self) -> None:
        self._n, self._found, self._stated = 0, 0.0, 0.0
        self._halves: list[Tensor] = []
        self._turn = 0

    def see(
        self,
        residual: Tensor,
        variance: Tensor,
        excess: float | Tensor,
        dark: Tensor,
        unstated: Tensor,
    ) -> None:
        """Add pairs.

        Args:
            residual, variance: (frame, y, x) photons, photons squared.
            excess: variance for each photon.
            dark: (frame, y, x) bool; pixels without molecules.
            unstated: (y, x) photons of offsets that were subtracted but not stated.
        """
        detail, n_pairs = _fine(residual), len(residual) // 2
        of_pair = _fine(variance, FINE.square()).unflatten(0, (n_pairs, 2)).sum(1)
        dark = dark[::2] & dark[1::2]
        inner = -max_pool2d(-pad(dark.float(), (1, 1, 1, 1)), 3, stride=1) > 0
        difference = detail[1::2] - detail[::2]
        ratio = (difference.square() / of_pair).clamp_max(OUTLIER**2)
        pattern = _fine(unstated[None])[0]
        level = (detail[::2] + detail[1::2] + 2 * pattern) / of_pair.sqrt()
        # of the light of these very pixels: those beside a molecule have more of its rings
        light = excess * (residual[::2] + residual[1::2])
        self._n += int(inner.sum())
        self._found += float((ratio * inner).double().sum())
        self._stated += float(((1 + light / of_pair) * inner).double().sum())
        seen = torch.stack([inner.float(), level * inner], 1)
        if not self._halves:
            self._halves = [torch.zeros_like(seen[0]), torch.zeros_like(seen[0])]
        for half in (0, 1):
            self._halves[(self._turn + half) % 2] += seen[half::2].sum(0)
        self._turn += n_pairs

    @property
    def noise(self) -> float:
        """Variance over that of the camera."""
        return self._found / self._stated if self._n >= FEWEST_DARK else math.nan

    @property
    def offset(self) -> float:
        """Rank correlation over pixels between the means of one half of the pairs and of the
        other."""
        if not self._halves:
            return math.nan
        (times, sums), (times_too, sums_too) = self._halves
        known = (times >= FEWEST_TIMES) & (times_too >= FEWEST_TIMES)
        if int(known.sum()) < FEWEST_PIXELS:
            return math.nan
        means = (sums / times)[known], (sums_too / times_too)[known]
        return float(torch.corrcoef(torch.stack([_ranks(mean) for mean in means]))[0, 1])


@final
class _Spots:
    """Counts of residual spots of light, and of molecules without light."""

    def __init__(self) -> None:
        self._molecules, self._missed, self._empty = 0, 0, 0

    def see(
        self, spot: Tensor, sigma: Tensor, *, at: Tensor, stated: Tensor, focused: Tensor
    ) -> None:
        """Add frames.

        Args:
            spot, sigma: (frame, y, x) residual light in a spot around each pixel, and its standard
                deviation.
            at: (n, 3) frame, y and x of the molecules.
            stated, focused: (n,) their light in a spot, and that if they were in focus: where they
                are not, a small error of the depth is a large share of the little light there.
        """
        signal, molecules = spot / sigma, tuple(at.T)
        typical = stated.median().nan_to_num()  # where there is no molecule, any light is missed
        missed = _peaks(signal.where(spot > MATTERS * typical, 0))
        empty = (signal[molecules] < -SEEN) & (spot[molecules] < -MATTERS * focused)
        self._missed += int((~_taken(signal, at)[tuple(missed.T)]).sum())
        self._empty += int(empty.sum())
        self._molecules += len(at)

    @property
    def missed(self) -> float:
        n = self._missed + self._molecules
        return self._missed / n if n >= FEWEST_SPOTS else math.nan

    @property
    def empty(self) -> float:
        n = self._molecules
        return self._empty / n if n >= FEWEST_SPOTS else math.nan


def _pixels(frame: Tensor, place: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """(m, 3) frame, y and x of the molecules (n,), (n, 2) that lie in frames of that shape, and
    (n,) bool, which they are."""
    x, y = place.floor().long().unbind(1)
    inside = (x >= 0) & (x < shape[2]) & (y >= 0) & (y < shape[1])
    return torch.stack([frame, y, x], 1)[inside], inside


def _peaks(signal: Tensor) -> Tensor:
    """(n, 3) frame, y and x of the pixels of a signal (frame, y, x) that are the largest within two
    pixels, and beyond `SEEN`."""
    at = torch.nonzero(signal > SEEN)
    near, border = _square(5)
    around = pad(signal, border, value=-math.inf)
    here = signal[tuple(at.T)]
    return at[here == around[_of(at, near)].amax(1)]


def _taken(signal: Tensor, at: Tensor) -> Tensor:
    """(frame, y, x) bool; the squares of `SPOT_PX` around (n, 3) frame, y and x."""
    near, border = _square(SPOT_PX)
    taken = pad(torch.zeros_like(signal, dtype=torch.bool), border)
    taken[_of(at, near)] = True
    edge = SPOT_PX // 2
    return taken[:, edge:-edge, edge:-edge]


def _square(side: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """(side^2, 2) steps along y and x from the corner of a square, and the border that it needs."""
    steps = torch.arange(side)
    return torch.cartesian_prod(steps, steps), (side // 2,) * 4


def _of(at: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index, (n, steps) each, of the squares around (n, 3) frame, y and x in a signal with their
    border."""
    frame, y, x = at[:, :, None].unbind(1)
    return frame.expand(-1, len(steps)), y + steps[:, 0], x + steps[:, 1]


@final
class _Crowds:
    """How many molecules are around a molecule."""

    def __init__(self) -> None:
        self._n, self._around = 0, 0

    def see(self, frame: Tensor, place: Tensor) -> None:
        """Add the molecules of some frames: (n,) frames and (n, 2) positions, pixels."""
        if not len(frame):
            return
        tree = tree_of(frame.numpy(), place.double().numpy())
        around = tree.query_ball_point(tree.data, AROUND_PX, return_length=True) - 1
        self._n += len(frame)
        self._around += int(around.sum())

    @property
    def per_px2(self) -> float:
        if self._n < FEWEST_SPOTS:
            return math.nan
        return self._around / self._n / (math.pi * AROUND_PX**2)


@final
class _Ends:
    """Count of molecules at the smallest and the largest z."""

    def __init__(self) -> None:
        self._n = 0
        self._ends: dict[bool, tuple[float, int]] = {}

    def see(self, molecules: EmitterSet) -> None:
        z = molecules.xyz[:, 2]
        self._n += len(z)
        for highest in (False, True) if len(z) else ():
            sign = 1 if highest else -1
            end, n = self._ends.get(highest, (-math.inf, 0))
            further = max(end, float((sign * z).max()))
            self._ends[highest] = further, n * (end == further) + int((sign * z == further).sum())

    @property
    def share(self) -> float:
        if self._n < FEWEST_SPOTS:
            return math.nan
        # the two that are furthest out lie at an end of their own
        return sum(n - 1 for _, n in self._ends.values()) / self._n


def _middle(side: slice) -> slice:
    """At most `WINDOW_PX` in the middle of a side."""
    spare = max(0, side.stop - side.start - WINDOW_PX) // 2
    return slice(side.start + spare, min(side.stop, side.start + spare + WINDOW_PX))


def _around(pairs: _Pairs, dark: Tensor) -> Tensor:
    """(frame, y, x) mean light of the dark pixels around each; of all where there are none."""
    weight = dark.to(pairs.residual)
    total, share = _boxed(torch.stack([pairs.residual * weight, weight]), NEAR_PX)
    enough = share > 0.1
    return torch.where(enough, total / share.clamp_min(1e-6), pairs.level[:, None, None])


def _boxed(images: Tensor, side: int) -> Tensor:
    """Means of images (..., y, x) over squares; zeros beyond the border count.

    Differences of running sums, whose cost does not grow with the square.
    """
    before, after = side // 2 + 1, side - side // 2 - 1
    for axis in (-2, -1):
        border = (0, 0, before, after) if axis == -2 else (before, after)
        total = pad(images, border).cumsum(axis)
        length = images.shape[axis]
        images = total.narrow(axis, side, length) - total.narrow(axis, 0, length)
    return images / side**2


def _offsets(camera: Camera, stated: Camera, shape: tuple[int, int]) -> Tensor:
    """(y, x) photons by which the offsets of two cameras differ."""
    beyond = torch.as_tensor(camera.baseline) - torch.as_tensor(stated.baseline)
    return (beyond * camera.photons_per_adu).float().expand(shape)


def _spot(psf: PSF) -> Tensor:
    """(1, 1, k, k) the PSF in focus less its mean, whose correlation with a frame is proportional
    to the light of a spot on any constant background."""
    cut = psf.with_patch(SPOT_PX)
    middle = (SPOT_PX // 2 + 0.5) * psf.pixel_size_nm
    image = cut.integrate_pixels(torch.tensor([[middle, middle, 0.0]])).detach()[None]
    return image - image.mean()


def _fine(images: Tensor, mask: Tensor = FINE) -> Tensor:
    """Images (n, y, x) correlated with a mask for their finest detail."""
    return conv2d(images[:, None], mask, padding=1)[:, 0]


def _ranks(values: Tensor) -> Tensor:
    return torch.argsort(torch.argsort(values)).double()


def _flicker(levels: list[Tensor]) -> float:
    """Ninth decile of the change of light within pairs, over the light."""
    light = torch.cat([torch.zeros(0), *levels]).view(-1, 2)
    if len(light) < FEWEST_TIMES:
        return math.nan
    return float(light.diff(dim=1).abs().quantile(0.9) / light.mean().clamp_min(1))
