"""Refit: one position for all frames of a molecule, by the exact likelihood of the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from decode.defects import UsualFrames
from decode.emitters import EmitterSet
from decode.io.movies import Movie
from decode.likelihood import PixelLikelihood, pixels_of
from decode.likelihood.windows import Frames, Windows
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF
from decode.postprocess.link.merge import Places
from decode.postprocess.link.sightings import Floats
from decode.postprocess.link.tracks import STEP, Linking
from decode.progress import DetailedSteps, Progress, Stepwise

__all__ = ["refitted"]

BLOCK_FRAMES, BLOCK_PIXELS = 256, 2**22
"""most frames, and most pixels of these, that are read at a time"""
ROWS_AT_ONCE = 1024
"""of molecules that are fitted together; a molecule of more is fitted by itself"""
STEPS = 10
CONVERGED = 0.03
"""step in standard deviations at which a fit ends"""
RELATIVE = 2e-3
"""change of the expected photons over which the likelihood is differentiated"""
LONGEST_Z_NM = 150.0
FURTHEST = 5.0
"""standard deviations from the merged position beyond which a fit followed another's light"""
LEVELS = torch.logspace(-1.3, 2.3, 10, dtype=torch.float64)
"""expected photons at which the information of a pixel is simulated; of brighter ones the variance
tells it"""
DRAWS = 4000


@Stepwise
@torch.no_grad()
def refitted(
    molecules: EmitterSet,
    linking: Linking,
    whole: EmitterSet,
    *,
    psf: PSF,
    camera: Camera,
    movie: Movie,
    usual: UsualFrames | None = None,
    depths_nm: tuple[float, float] = (-math.inf, math.inf),
) -> DetailedSteps[None, EmitterSet]:
    """The molecules of more than one row, fitted to the movie with one position each.

    The unknowns of a molecule are its position and, in each of its frames, its photons and the
    background around it.  Their likelihood is that of the counts in a window of each frame
    (`Camera.log_prob`), in which the other molecules of the table are light that is known.  Its
    maximum is found by Fisher scoring with damping (Levenberg-Marquardt); the photons and the
    background of each frame are eliminated by Schur complements, so that a molecule of many frames
    costs as much as its frames one by one.  The covariance is the inverse of the Fisher
    information; in dim pixels this is larger than the variance of the counts says, by a factor that
    is simulated.

    A molecule whose fit did not converge, or moved far, stays as it was merged.

    Args:
        molecules: the rows that were linked; their frames count as those of the movie.
        linking: from `linked`.
        whole: from `merged`.
        psf: the point spread function.
        camera: its maps, if any, are as large as the frames.
        movie: in which the molecules were found.
        usual: statistics of its frames; None: computed from the movie.
        depths_nm: least and largest z.

    Returns:
        `whole` with the positions, uncertainties, photons and background of the fits; `polished`
        says of which, and the metadata how many.

    Raises:
        ValueError: if the movie has fewer frames than the table.
    """
    last = int(molecules.frame.max()) if len(molecules) else -1
    if last >= len(movie):
        raise ValueError(
            f"molecules are in frames up to {last + 1}, and {movie.path} has {len(movie)}: it is "
            "not the movie that they were found in"
        )
    usual = usual or UsualFrames.of(movie, camera)
    axes = [0, 1, 2] if psf.z_range_nm is not None else [0, 1]
    model = _Model(
        psf=psf,
        axes=axes,
        pixels=pixels_of(camera),
        gain=_information_gain(camera),
        depths_nm=depths_nm,
    )
    count = np.bincount(linking.track, minlength=linking.n_molecules)
    start = whole.xyz.double().cpu()
    found: list[_Fits] = []
    waiting: list[_Part] = []
    _, height, width = movie.shape
    block = max(1, min(BLOCK_FRAMES, BLOCK_PIXELS // (height * width)))
    seen = _to_fit(molecules)
    ends = torch.from_numpy(np.asarray(whole.others["last_frame"], np.int64))
    for low in range(0, last + 1, block):
        high = min(low + block, len(movie))
        yield Progress(low / (last + 1), "fitting molecules to the movie")
        rows = torch.nonzero((seen.frame >= low) & (seen.frame < high))[:, 0]
        track = torch.from_numpy(linking.track)[rows]
        wanted = torch.nonzero(torch.from_numpy(count)[track] > 1)[:, 0]
        if len(wanted):
            here = seen[rows]
            here = replace(here, frame=here.frame - low)
            adu = torch.from_numpy(usual.levelled(movie.read(low, high).astype(np.float32)))
            waiting += _parts(model, camera, adu, here, wanted=wanted, track=track)
        ready, waiting = _ready(waiting, ends, before=high)
        for part in ready:
            found.append(model.fit(part, start))
    fits = [fit for fit in found if len(fit.which)]
    yield Progress(1.0, "")
    return _with_fits(whole, fits, linking) if fits else whole


def _to_fit(molecules: EmitterSet) -> EmitterSet:
    """The rows in single precision on the CPU, with a background to start from."""
    dark = molecules.background
    return EmitterSet(
        frame=molecules.frame.cpu(),
        xyz=torch.nan_to_num(molecules.xyz).float().cpu(),
        photons=torch.nan_to_num(molecules.photons, nan=1000.0).float().cpu(),
        background=torch.ones(len(molecules)) if dark is None else dark.float().cpu(),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Part:
    """Windows of some rows, and the molecules that they show."""

    windows: Windows
    track: Tensor
    """(m,)"""

    def __getitem__(self, rows: Tensor) -> _Part:
        return _Part(windows=self.windows[rows], track=self.track[rows])

    @staticmethod
    def cat(parts: Sequence[_Part]) -> _Part:
        first = parts[0].windows
        whole: dict[str, Any] = {}
        for name in (f.name for f in fields(Windows)):
            values = [getattr(part.windows, name) for part in parts]
            if isinstance(values[0], Tensor):
                whole[name] = torch.cat(values)
        excess, floor = zip(*(part.windows.noise for part in parts), strict=True)
        windows = replace(first, **whole, noise=(torch.cat(excess), torch.cat(floor)))
        return _Part(windows=windows, track=torch.cat([part.track for part in parts]))


def _parts(
    model: _Model,
    camera: Camera,
    adu: Tensor,
    here: EmitterSet,
    *,
    wanted: Tensor,
    track: Tensor,
) -> list[_Part]:
    """Windows around the wanted of the rows of a block of frames."""
    psf = model.psf
    frames = Frames(psf, camera, adu, here, axes=model.axes, background=None)
    parameters = psf.parameters_at(here.xyz)
    return [
        _Part(windows=frames.windows(rows[:, None], parameters), track=track[rows])
        for rows in wanted.split(ROWS_AT_ONCE)
    ]


def _ready(waiting: list[_Part], ends: Tensor, *, before: int) -> tuple[list[_Part], list[_Part]]:
    """Parts of molecules that end before a frame, each whole; and what is left for later."""
    if not waiting:
        return [], []
    all_ = _Part.cat(waiting)
    over = ends[all_.track] < before
    rest = torch.nonzero(~over)[:, 0]
    rows = torch.nonzero(over)[:, 0]
    rows = rows[torch.argsort(all_.track[rows], stable=True)]
    _, count = torch.unique_consecutive(all_.track[rows], return_counts=True)
    sizes, ready = _sizes(count.tolist()), []
    for part in rows.split(sizes):
        if len(part):
            ready.append(all_[part])
    return ready, [all_[rest]] if len(rest) else []


def _sizes(count: list[int]) -> list[int]:
    """Numbers of rows of successive whole molecules that are fitted together."""
    sizes = [0]
    for n in count:
        if sizes[-1] and sizes[-1] + n > ROWS_AT_ONCE:
            sizes.append(0)
        sizes[-1] += n
    return sizes


class _Fits(NamedTuple):
    """Molecules fitted to the movie."""

    which: Tensor
    """(k,)"""
    xyz: Tensor
    """(k, 3) nm"""
    covariance: Tensor
    """(k, 4, 4) of x, y, z and the sum of photons; NaN along z where it is not fitted"""
    photons: Tensor
    """(k,) sum over the frames"""
    background: Tensor
    """(k,) mean over the frames"""
    converged: Tensor


class _State(NamedTuple):
    """Unknowns of some molecules."""

    place: Tensor
    """(k, d) nm"""
    photons: Tensor
    """(m,)"""
    background: Tensor
    """(m,)"""

    def where(self, better: Tensor, rows: Tensor, other: _State) -> _State:
        """The other's where (k,) molecules are better, whose rows (m,) are numbered."""
        return _State(
            torch.where(better[:, None], other.place, self.place),
            torch.where(better[rows], other.photons, self.photons),
            torch.where(better[rows], other.background, self.background),
        )


class _Slope(NamedTuple):
    """Log-likelihood of molecules, its score and information; those of photons and background of
    each row are eliminated from those of the position."""

    level: Tensor
    """(k,)"""
    score: Tensor
    """(k, d)"""
    information: Tensor
    """(k, d, d)"""
    own_inverse: Tensor
    """(m, 2, 2) inverse information of photons and background"""
    own_score: Tensor
    """(m, 2)"""
    follows: Tensor
    """(m, 2, d) minus the change of photons and background with the position"""

    def where(self, better: Tensor, rows: Tensor, other: _Slope) -> _Slope:
        """As of `_State`."""
        chosen = []
        for name, own, new in zip(self._fields, self, other, strict=True):
            which = better if name in ("level", "score", "information") else better[rows]
            chosen.append(torch.where(which.view(-1, *[1] * (own.ndim - 1)), new, own))
        return _Slope(*chosen)


@final
@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is fitted, and how likely it is."""

    psf: PSF
    axes: list[int]
    pixels: PixelLikelihood
    gain: Floats
    """information of a pixel over that by its variance, at `LEVELS`"""
    depths_nm: tuple[float, float]

    def fit(self, part: _Part, start: Tensor) -> _Fits:
        """Fit molecules whose rows are all in a part.

        Args:
            start: (molecules of the table, 3) nm.
        """
        which, rows = part.track.unique(return_inverse=True)
        windows, full = part.windows, start[which]
        state = _State(
            full[:, self.axes], windows.photons[:, 0, 0].double(), windows.background[:, 0].double()
        )
        slope = self._slope(windows, state, full, rows)
        damping = torch.full((len(which),), 1e-3, dtype=torch.float64)
        moving = torch.ones(len(which), dtype=torch.bool)
        size = windows.psf.pixel_size_nm
        longest = torch.tensor([size / 2, size / 2, LONGEST_Z_NM], dtype=torch.float64)[self.axes]
        for _ in range(STEPS):
            diagonal = torch.diag_embed(slope.information.diagonal(dim1=1, dim2=2))
            damped = slope.information + damping[:, None, None] * diagonal
            step = torch.linalg.solve_ex(damped, slope.score)[0].clamp(-longest, longest)
            trial = self._moved(state, slope, step, rows)
            new = self._slope(windows, trial, full, rows)
            better = moving & (new.level >= slope.level - 1e-6 * slope.level.abs())
            length = (trial.place - state.place) * slope.information.diagonal(dim1=1, dim2=2).sqrt()
            state, slope = state.where(better, rows, trial), slope.where(better, rows, new)
            damping = torch.where(better, damping / 10, damping * 10)
            moving &= ~(better & (length.abs().amax(1) < CONVERGED)) & (damping < 1e4)
            if not bool(moving.any()):
                break
        return self._fits(part, full, state, slope, ~moving & (damping < 1e4))

    def _moved(self, state: _State, slope: _Slope, step: Tensor, rows: Tensor) -> _State:
        """After a step of the positions; photons and background follow."""
        place = state.place + step
        if 2 in self.axes:
            place[:, 2] = place[:, 2].clamp(*self.depths_nm)
        step = place - state.place
        own = slope.own_inverse @ slope.own_score[:, :, None]
        own = own - slope.follows @ step[rows][:, :, None]
        photons = torch.maximum(state.photons + own[:, 0, 0], 0.3 * state.photons)
        background = (state.background + own[:, 1, 0]).clamp_min(DARKEST)
        return _State(place, photons.clamp_min(1.0), background)

    def _slope(self, windows: Windows, state: _State, full: Tensor, rows: Tensor) -> _Slope:
        """Log-likelihood of the state, and its derivatives."""
        d, k = len(self.axes), len(full)
        xyz = full.clone()
        xyz[:, self.axes] = state.place
        local = (xyz[rows] - windows.origin.double()).to(windows.xyz)
        image = windows.psf.integrate_pixels_with_slopes(local, windows.parameters)
        image = image.flatten(2).double()
        share, slopes = image[:, :1], image[:, [1 + axis for axis in self.axes]]
        bright, dark = state.photons[:, None], state.background[:, None]
        mean = (bright * share[:, 0] + dark + windows.light[:, 0]).clamp_min(DARKEST)
        level, score = self._pixels(windows, mean)
        change = torch.cat([bright[:, :, None] * slopes, share, torch.ones_like(share)], 1)
        known = self._information(windows, mean)
        information = (change * known[:, None]) @ change.mT
        gradient = (change @ score[:, :, None])[:, :, 0]
        # seen alone, photons and background always show; the diagonal keeps dark windows regular
        own = information[:, d:, d:] + 1e-9 * torch.eye(2, dtype=torch.float64)
        own_inverse = torch.linalg.inv(own)
        follows = own_inverse @ information[:, d:, :d]
        reduced = information[:, :d, :d] - information[:, :d, d:] @ follows
        pull = gradient[:, :d] - (follows.mT @ gradient[:, d:, None])[:, :, 0]
        nothing = torch.zeros(k, dtype=torch.float64)
        return _Slope(
            level=nothing.index_add(0, rows, level),
            score=nothing.new_zeros(k, d).index_add(0, rows, pull),
            information=nothing.new_zeros(k, d, d).index_add(0, rows, reduced),
            own_inverse=own_inverse,
            own_score=gradient[:, d:],
            follows=follows,
        )

    def _pixels(self, windows: Windows, mean: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) log-likelihood, and (m, p) its derivatives by the expected photons."""
        around = torch.stack([mean * (1 - RELATIVE), mean * (1 + RELATIVE)], 1)
        logs = self.pixels.log_prob(windows.adu, around[:, :, None], windows.pixel)
        logs = logs[:, :, 0] * windows.seen[:, None]
        slope = (logs[:, 1] - logs[:, 0]) / (2 * RELATIVE * mean)
        return logs.mean(1).sum(1), slope

    def _information(self, windows: Windows, mean: Tensor) -> Tensor:
        """(m, p) Fisher information of each pixel."""
        excess, floor = (value.double() for value in windows.noise)
        at = np.interp(mean.log().numpy(), LEVELS.log().numpy(), self.gain)
        return windows.seen * torch.from_numpy(at) / (excess * mean + floor)

    def _fits(
        self, part: _Part, full: Tensor, state: _State, slope: _Slope, converged: Tensor
    ) -> _Fits:
        which, rows, count = part.track.unique(return_inverse=True, return_counts=True)
        k = len(which)
        xyz = full.clone()
        xyz[:, self.axes] = state.place
        place, failed = torch.linalg.inv_ex(slope.information)
        nothing = torch.zeros(k, dtype=torch.float64)

        def summed(values: Tensor) -> Tensor:
            return nothing.new_zeros(k, *values.shape[1:]).index_add(0, rows, values)

        follows = summed(slope.follows[:, 0])
        with_place = -(place @ follows[:, :, None])[:, :, 0]
        own = summed(slope.own_inverse[:, 0, 0]) - (follows * with_place).sum(1)
        covariance = torch.full((k, 4, 4), torch.nan, dtype=torch.float64)
        axes = torch.tensor(self.axes)
        covariance[:, axes[:, None], axes] = place
        covariance[:, 3, axes] = covariance[:, axes, 3] = with_place
        covariance[:, 3, 3] = own
        known = (failed == 0) & (place.diagonal(dim1=1, dim2=2) > 0).all(1)
        return _Fits(
            which=which,
            xyz=xyz,
            covariance=covariance,
            photons=summed(state.photons),
            background=summed(state.background) / count,
            converged=converged & known,
        )


def _information_gain(camera: Camera) -> Floats:
    """Information of a pixel about its expected photons over the inverse variance of its counts, at
    `LEVELS`.

    It is the mean square of the score (the derivative of the log-likelihood) of simulated counts of
    the median pixel; dim pixels of an EMCCD tell more than their variance says, for there single
    electrons are told from none.
    """
    typical = _median(camera)
    rng = torch.Generator().manual_seed(0)
    photons = LEVELS[:, None].expand(-1, DRAWS)
    adu = typical.sample(photons, rng)
    low, high = (typical.log_prob(adu, photons * (1 + s * RELATIVE)) for s in (-1, 1))
    score = (high - low) / (2 * RELATIVE * photons)
    variance = typical.typical_noise.variance(LEVELS)
    gain = (score.square().mean(1) * variance).clamp_min(1.0)
    # at the brightest level the variance tells all, but for the noise of the draws
    smooth: Floats = np.convolve(np.pad(gain.numpy(), 1, mode="edge"), np.ones(3) / 3, "valid")
    return smooth


def _median(camera: Camera) -> Camera:
    """A camera whose pixels are all the median one."""
    numbers: dict[str, Any] = {
        f.name: float(torch.as_tensor(value).double().median())
        for f in fields(Camera)
        if f.name != "bad" and (value := getattr(camera, f.name)) is not None
    }
    return Camera(**numbers)


def _with_fits(whole: EmitterSet, fits: Sequence[_Fits], linking: Linking) -> EmitterSet:
    """A table of merged molecules, with those that were fitted well in their place."""
    names = _Fits._fields
    fit = _Fits(**{name: torch.cat([getattr(part, name) for part in fits]) for name in names})
    assert whole.xyz_sigma is not None
    before = whole.xyz[fit.which].double()
    stated = torch.nan_to_num(whole.xyz_sigma[fit.which].double())
    found = fit.covariance.diagonal(dim1=1, dim2=2)[:, :3].sqrt()
    fitted = ~found.isnan()
    excess = np.nan_to_num(np.array(linking.excess), nan=1.0).clip(1.0)
    allowed = FURTHEST * torch.maximum(stated, found) * torch.from_numpy(excess)
    near = ((fit.xyz - before).abs() <= allowed) | ~fitted
    good = torch.nonzero(fit.converged & near.all(1))[:, 0]
    fit = _Fits(*(column[good] for column in fit))
    half95 = 1.96 * fit.covariance.diagonal(dim1=1, dim2=2)[:, :3].sqrt()
    places = Places(
        which=fit.which.numpy(),
        xyz=fit.xyz.numpy(),
        covariance=fit.covariance.numpy(),
        half95=half95.numpy(),
    )
    polished = (
        torch.zeros(len(whole), dtype=torch.bool) if whole.polished is None else whole.polished
    )
    sigma = whole.photons_sigma
    if sigma is None:
        sigma = torch.full_like(whole.photons, torch.nan)
    dark = whole.background
    step = whole.metadata[STEP]
    record = dict(step) if isinstance(step, dict) else {}
    return replace(
        places.put_into(whole),
        photons=_put(whole.photons, fit.which, fit.photons),
        photons_sigma=_put(sigma, fit.which, fit.covariance[:, 3, 3].sqrt()),
        photons_95=None,
        background=None if dark is None else _put(dark, fit.which, fit.background),
        polished=_put(polished, fit.which, torch.ones(len(good), dtype=torch.bool)),
        metadata=dict(whole.metadata) | {STEP: record | {"refitted": len(good)}},
    )


def _put(column: Tensor, which: Tensor, values: Tensor) -> Tensor:
    return column.index_copy(0, which, values.to(column))
