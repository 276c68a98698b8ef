"""Sample: frames of a movie with the molecules that were found in them, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from decode.defects import UsualFrames
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.likelihood.polish import windows_for
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.quality.evidence import Evidence
from decode.quality.lone import FITS, Crops, LoneMolecules, Pupil, drawing, nearer_to_one

__all__ = ["Sample"]

PAIRS = 32
"""number of pairs of successive frames in the sample, spread over the movie"""
WINDOW_PX = 256
"""largest side of the middle of the frames that is used"""
LONE_MOLECULES = 256
"""approximate number of lone molecules that are fitted"""
INFORMATION = 1.25
"""largest ratio of the Cramer-Rao bound in the crop of a molecule to that in the whole patch"""
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
        (self._side,) = windows_for(psf, camera, axial=axial, most=[INFORMATION])
        self._quota = math.ceil(LONE_MOLECULES / max(1, len(self._pairs)))
        self._unstated = _offsets(camera, stated or camera, movie.shape[1:])
        self._floor = camera.noise_floor.float().expand(movie.shape[1:])
        self._kernel = _spot(psf)
        self._done = 0
        self._ends = _Ends()
        self._seen: list[_Pair] = []

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
        for first in self._pairs:
            if start <= first and first + 2 <= frames_done:
                self._look(molecules, first)

    @torch.no_grad()
    def _look(self, molecules: EmitterSet, first: int) -> None:
        """Add two frames, the first of which has the number `first` in the movie."""
        number = self._movie.frames.start + first
        adu = self._movie.read(first, first + 2).astype(np.float32)
        if self._usual is not None:
            if self._usual.unusable(adu, number):
                return
            adu = self._usual.levelled(adu)
        photons = self._camera.to_photons(torch.from_numpy(adu)).float()
        photons = self._camera.without_bad(photons)
        own = molecules[(molecules.frame >= number) & (molecules.frame < number + 2)]
        rows, columns = self._rows, self._columns
        corner = torch.tensor([columns.start, rows.start, 0.0]) * self._psf.pixel_size_nm
        placed = replace(own, frame=own.frame - number, xyz=own.xyz - corner)
        parameters = self._psf.parameters_at(own.xyz)
        expected = render(
            self._psf,
            frame=placed.frame,
            xyz=placed.xyz,
            photons=own.photons,
            n_frames=2,
            shape=(rows.stop - rows.start, columns.stop - columns.start),
            parameters=parameters,
        )
        self._seen.append(
            _Pair(
                number=number,
                molecules=placed,
                parameters=torch.zeros(len(own), 0) if parameters is None else parameters,
                light=photons[:, rows, columns],
                expected=expected,
            )
        )

    def _crops(self, pair: _Pair, background: Tensor, rng: np.random.Generator) -> list[Crops]:
        """Crops of some lone molecules of two frames, without the light of the others and without
        the structure of the background.

        Args:
            pair: two frames.
            background: (2, y, x) photons.
            rng: chooses the molecules.
        """
        side, own = self._side, pair.molecules
        place = (own.xyz[:, :2] / self._psf.pixel_size_nm).numpy()
        apart = _nearest(own.frame.numpy(), place) > APART * side
        corner = np.floor(place).astype(int) - side // 2
        inside = (corner >= 0).all(1) & (corner + side <= pair.light.shape[:0:-1]).all(1)
        chosen = rng.permutation(np.flatnonzero(apart & inside))[: self._quota]
        if not len(chosen):
            return []
        rows = torch.from_numpy(chosen)
        lone, parameters = own[rows], pair.parameters[rows]
        origin = torch.from_numpy(corner[chosen]).float() * self._psf.pixel_size_nm
        xyz = lone.xyz - pad(origin, (0, 1))
        cuts = [
            (int(t), slice(y, y + side), slice(x, x + side))
            for t, (x, y) in zip(lone.frame, corner[chosen].tolist(), strict=True)
        ]
        draw = drawing(self._psf, side, parameters if parameters.shape[1] else None)
        residual = torch.stack([(pair.light - pair.expected)[cut] for cut in cuts])
        structure = torch.stack([background[cut] for cut in cuts])
        structure = structure - structure.mean((1, 2), keepdim=True)
        floor = self._floor[self._rows, self._columns]
        crops = Crops(
            frame=lone.frame + pair.number,
            place=torch.from_numpy(place[chosen]),
            xyz=xyz,
            light=residual - structure + lone.photons[:, None, None] * draw(xyz),
            floor=torch.stack([floor[y, x] for _, y, x in cuts]),
            parameters=parameters,
        )
        return [crops]

    def _dark(self, pair: _Pair) -> Tensor:
        """(2, y, x) bool; pixels without light of molecules."""
        floor = self._floor[self._rows, self._columns]
        rough = self._camera.typical_noise.excess * pair.level[:, None, None].clamp_min(0) + floor
        dark = pair.expected < FAINT * rough.sqrt()
        if self._camera.bad is not None:
            dark &= ~self._camera.bad[self._rows, self._columns]
        return dark

    def _structure(self, dark: Sequence[Tensor], around: Sequence[Tensor]) -> Tensor:
        """(y, x) background over that of its surroundings, less 1: what stays in place.

        It is the mean over all frames, clipped as molecules that were not found shine in few.
        """
        floor, excess = self._floor[self._rows, self._columns], self._camera.typical_noise.excess
        beyond, whole = torch.zeros_like(floor), torch.zeros_like(floor)
        for pair, is_dark, light in zip(self._seen, dark, around, strict=True):
            base = light.clamp_min(0.05)
            sigma = (excess * base + floor).sqrt()
            clipped = (pair.residual - base).clamp(-OUTLIER * sigma, OUTLIER * sigma)
            beyond += (clipped * is_dark).sum(0)
            whole += (base * is_dark).sum(0)
        if not self._seen:
            return beyond
        smooth = partial(avg_pool2d, kernel_size=STRUCTURE_PX, stride=1, padding=STRUCTURE_PX // 2)
        return (smooth(beyond[None]) / smooth(whole[None]).clamp_min(1e-3))[0].clamp_min(-0.9)

    def evidence(self) -> Evidence:
        """The evidence of all that was added."""
        dark = [self._dark(pair) for pair in self._seen]
        around = [_around(pair.residual, d) for pair, d in zip(self._seen, dark, strict=True)]
        structure = self._structure(dark, around)
        floor = self._floor[self._rows, self._columns]
        excess = self._camera.typical_noise.excess
        dark_pixels, spots, crowds = _DarkPixels(), _Spots(), _Crowds()
        crops: list[Crops] = []
        rng = np.random.default_rng(0)
        unstated = self._unstated[self._rows, self._columns]
        for pair, is_dark, light in zip(self._seen, dark, around, strict=True):
            background = light * (1 + structure)
            variance = excess * (pair.expected + background).clamp_min(0.05) + floor
            residual = pair.residual - background
            dark_pixels.see(residual, variance, is_dark.all(0), unstated)
            spot = conv2d(residual[:, None], self._kernel, padding=SPOT_PX // 2)[:, 0]
            noise = conv2d(variance[:, None], self._kernel.square(), padding=SPOT_PX // 2)[:, 0]
            place = pair.molecules.xyz[:, :2] / self._psf.pixel_size_nm
            spots.see(spot / noise.sqrt(), pair.molecules.frame, place)
            crowds.see(pair.molecules.frame, place)
            crops += self._crops(pair, background, rng)
        evidence = Evidence(
            kind="gaussian" if self._psf.free_width else "measured",
            noise=dark_pixels.noise,
            pixel_offset=dark_pixels.offset,
            flicker=_flicker([pair.light.flatten(1).median(1).values for pair in self._seen]),
            missed=spots.missed,
            empty=spots.empty,
            density=crowds.per_px2 / (self._psf.pixel_size_nm / 1e3) ** 2,
            at_ends=self._ends.share if self._axial else math.nan,
        )
        if not crops:
            return evidence
        found = Crops.cat(crops)
        lone = LoneMolecules.of(
            found, self._psf, self._camera, axial=self._axial, pupil=self._pupil
        )
        if not lone.enough:
            return evidence
        misfit = lone.misfit()
        width = nearer_to_one(*lone.width())
        if self._psf.free_width and width != 1:
            width = lone.fitted_width(self._psf, self._camera)
        spherical = math.nan
        if self._pupil is not None:
            spherical = lone.fitted_spherical(self._pupil, self._camera)
        # a PSF that fits is better than any other, whatever a few molecules say
        turn, turned = "", 0.0
        if misfit > FITS:
            turn, turned = lone.best_turn(self._psf, self._camera)
        return replace(
            evidence,
            n_lone=len(lone.crops),
            misfit=misfit,
            spherical=spherical,
            goodness=lone.goodness(),
            width=width,
            width_spread=lone.width_spread(),
            elongation=lone.elongation(),
            drift=lone.drift(),
            turn=turn,
            turned=turned,
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two successive frames within the window, and the molecules found in them."""

    number: int
    """of the first frame"""
    molecules: EmitterSet
    """frames 0 and 1, positions from the corner of the window"""
    parameters: Tensor
    """(n, p) parameters of the PSF; p = 0: its own"""
    light: Tensor
    """(2, y, x) photons"""
    expected: Tensor
    """(2, y, x) photons of the molecules"""

    @property
    def residual(self) -> Tensor:
        return self.light - self.expected

    @cached_property
    def level(self) -> Tensor:
        """(2,) median light"""
        return self.residual.flatten(1).median(1).values


@final
class _DarkPixels:
    """Finest detail of pairs of frames, in pixels without molecules."""

    def __init__(self) -> None:
        self._n, self._sum = 0, 0.0
        self._halves: list[Tensor] = []
        self._turn = 0

    def see(self, residual: Tensor, variance: Tensor, dark: Tensor, unstated: Tensor) -> None:
        """Add a pair.

        Args:
            residual, variance: (2, y, x) photons, photons squared.
            dark: (y, x) bool; pixels without molecules in both frames.
            unstated: (y, x) photons of offsets that were subtracted but not stated.
        """
        detail = conv2d(residual[:, None], FINE, padding=1)[:, 0]
        noise = conv2d(variance[:, None], FINE.square(), padding=1)[:, 0]
        inner = -max_pool2d(-pad(dark[None].float(), (1, 1, 1, 1)), 3, stride=1)[0] > 0
        difference = detail[1] - detail[0]
        ratio = (difference.square() / noise.sum(0)).clamp_max(OUTLIER**2)
        pattern = conv2d(unstated[None, None], FINE, padding=1)[0, 0]
        level = (detail.sum(0) + 2 * pattern) / noise.sum(0).sqrt()
        self._n += int(inner.sum())
        self._sum += float(ratio[inner].double().sum())
        seen = torch.stack([inner.float(), level.where(inner, 0.0)])
        if not self._halves:
            self._halves = [torch.zeros_like(seen), torch.zeros_like(seen)]
        self._halves[self._turn % 2] += seen
        self._turn += 1

    @property
    def noise(self) -> float:
        """Variance over that of the camera."""
        return self._sum / self._n if self._n >= FEWEST_DARK else math.nan

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

    def see(self, signal: Tensor, frame: Tensor, place: Tensor) -> None:
        """Add two frames.

        Args:
            signal: (2, y, x) residual light in a spot around each pixel, over its noise.
            frame, place: (n,) frames and (n, 2) positions of the molecules, pixels.
        """
        height, width = signal.shape[1:]
        x, y = place.floor().long().unbind(1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        frame, x, y = frame[inside], x[inside], y[inside]
        taken = torch.zeros_like(signal)
        taken[frame, y, x] = 1
        taken = max_pool2d(taken, SPOT_PX, stride=1, padding=SPOT_PX // 2) > 0
        peak = signal == max_pool2d(signal[:, None], 5, stride=1, padding=2)[:, 0]
        self._missed += int((peak & (signal > SEEN) & ~taken).sum())
        self._empty += int((signal[frame, y, x] < -SEEN).sum())
        self._molecules += len(frame)

    @property
    def missed(self) -> float:
        n = self._missed + self._molecules
        return self._missed / n if n >= FEWEST_SPOTS else math.nan

    @property
    def empty(self) -> float:
        n = self._molecules
        return self._empty / n if n >= FEWEST_SPOTS else math.nan


@final
class _Crowds:
    """How many molecules are around a molecule."""

    def __init__(self) -> None:
        self._n, self._around = 0, 0

    def see(self, frame: Tensor, place: Tensor) -> None:
        """Add the molecules of two frames: (n,) frames and (n, 2) positions, pixels."""
        if not len(frame):
            return
        tree = _tree(frame.numpy(), place.numpy())
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


def _around(light: Tensor, dark: Tensor) -> Tensor:
    """(2, y, x) mean light of the dark pixels around each; of all where there are none."""
    weight = dark.to(light)[:, None]
    total, share = (_boxed(part, NEAR_PX)[:, 0] for part in (light[:, None] * weight, weight))
    overall = light.flatten(1).median(1).values[:, None, None]
    return torch.where(share > 0.1, total / share.clamp_min(1e-6), overall)


def _boxed(images: Tensor, side: int) -> Tensor:
    """Means of images (n, 1, y, x) over squares, along one axis after the other, as that is
    cheaper; zeros beyond the border count."""
    rows = avg_pool2d(images, (side, 1), stride=1, padding=(side // 2, 0))
    return avg_pool2d(rows, (1, side), stride=1, padding=(0, side // 2))


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


def _tree(frame: npt.NDArray[np.int64], place: npt.NDArray[np.float32]) -> cKDTree:
    """A search tree of molecules, whose distance is infinite between frames."""
    return cKDTree(np.column_stack([place, frame * 1e6]))


def _nearest(
    frame: npt.NDArray[np.int64], place: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """(n,) distance to the nearest other molecule of the frame, pixels."""
    if len(frame) < 2:
        return np.full(len(frame), np.inf)
    tree = _tree(frame, place)
    distance, _ = tree.query(tree.data, k=2)
    return np.asarray(distance[:, 1])


def _ranks(values: Tensor) -> Tensor:
    return torch.argsort(torch.argsort(values)).double()


def _flicker(levels: list[Tensor]) -> float:
    """Ninth decile of the change of light within pairs, over the light."""
    if len(levels) < FEWEST_TIMES:
        return math.nan
    light = torch.stack(levels)
    return float(light.diff(dim=1).abs().quantile(0.9) / light.mean().clamp_min(1))
