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
from decode.likelihood.windows import Frames, Windows, neighbourhoods
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
PRIOR_WIDTH = 2.0
"""least width of what is known of a neighbour, in its standard deviations in the frame"""
UNKNOWN_NM = 100.0
"""of neighbours without one"""
WIDER_PX = 3
"""difference of the extents of neighbours whose windows are as large"""
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
    (`Camera.log_prob`).  Up to three neighbours are unknown, too, with what other frames say of
    their places as a prior; the light of other molecules is that of the table.  The maximum is
    found by Fisher scoring with damping (Levenberg-Marquardt); what belongs to single frames is
    eliminated by Schur complements, so that a molecule of many frames costs as much as its frames
    one by one.  The covariance is the inverse of the Fisher
    information; in dim pixels this is larger than the variance of the counts says, by a factor that
    is simulated.

    A molecule whose fit did not converge, or moved far, stays as it was merged.  None that has
    neighbours states a smaller uncertainty than it had: what its rows doubt of these, the
    likelihood of the light alone does not know.

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
    several = torch.from_numpy(np.bincount(linking.track, minlength=linking.n_molecules) > 1)
    track = torch.from_numpy(linking.track)
    seen, known = _placed(molecules, linking, whole)
    ends = torch.from_numpy(np.asarray(whole.others["last_frame"], np.int64))
    start = whole.xyz.double().cpu()
    _, height, width = movie.shape
    block = max(1, min(BLOCK_FRAMES, BLOCK_PIXELS // (height * width)))
    found: list[_Fits] = []
    waiting: list[_Views] = []
    for low in range(0, last + 1, block):
        high = min(low + block, len(movie))
        yield Progress(low / (last + 1), "fitting molecules to the movie")
        rows = torch.nonzero((seen.frame >= low) & (seen.frame < high))[:, 0]
        wanted = several[track[rows]]
        if bool(wanted.any()):
            here = replace(seen[rows], frame=seen.frame[rows] - low)
            adu = torch.from_numpy(usual.levelled(movie.read(low, high).astype(np.float32)))
            frames = Frames(psf, camera, adu, here, axes=axes, background=None)
            waiting += _views(model, frames, here, wanted, track=track[rows], known=known[rows])
        ready, waiting = _ready(waiting, ends, before=high)
        found += [model.fit(views, start) for views in ready]
    yield Progress(1.0, "")
    return _with_fits(whole, found, linking) if found else whole


def _placed(
    molecules: EmitterSet, linking: Linking, whole: EmitterSet
) -> tuple[EmitterSet, Tensor]:
    """The rows where their molecules were merged, and (rows, 3) what is known of that, nm^-2, but
    for the row itself."""
    track = torch.from_numpy(linking.track)
    dark = molecules.background
    rows = EmitterSet(
        frame=molecules.frame.cpu(),
        xyz=torch.nan_to_num(whole.xyz[track]).float().cpu(),
        photons=torch.nan_to_num(molecules.photons, nan=1000.0).float().cpu(),
        background=torch.ones(len(molecules)) if dark is None else dark.float().cpu(),
    )
    stated = molecules.xyz_sigma
    if stated is None:
        stated = torch.full_like(molecules.xyz, torch.nan)
    own, merged = (
        torch.nan_to_num(sigma.double().cpu(), nan=UNKNOWN_NM).clamp_min(0.1) ** -2
        for sigma in (stated, whole.xyz_sigma[track] if whole.xyz_sigma is not None else stated)
    )
    return rows, torch.maximum(merged - own, own / PRIOR_WIDTH**2)


@final
@dataclass(frozen=True, kw_only=True)
class _Views:
    """Windows of one shape around rows and up to three neighbours of each."""

    windows: Windows
    """the row's molecule comes first, its neighbours follow"""
    track: Tensor
    """(n,) the molecule that each row shows"""
    known: Tensor
    """(n, k - 1, d) what other frames say of the neighbours' places, nm^-2"""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of molecules and pixels of a window."""
        return self.windows.shape[0], self.windows.adu.shape[2]

    def __getitem__(self, rows: Tensor) -> _Views:
        return _Views(windows=self.windows[rows], track=self.track[rows], known=self.known[rows])

    @staticmethod
    def cat(parts: Sequence[_Views]) -> _Views:
        first = parts[0].windows
        whole: dict[str, Any] = {}
        for name in (f.name for f in fields(Windows)):
            values = [getattr(part.windows, name) for part in parts]
            if isinstance(values[0], Tensor):
                whole[name] = torch.cat(values)
        excess, floor = zip(*(part.windows.noise for part in parts), strict=True)
        windows = replace(first, **whole, noise=(torch.cat(excess), torch.cat(floor)))
        return _Views(
            windows=windows,
            track=torch.cat([part.track for part in parts]),
            known=torch.cat([part.known for part in parts]),
        )


def _views(
    model: _Model,
    frames: Frames,
    here: EmitterSet,
    wanted: Tensor,
    *,
    track: Tensor,
    known: Tensor,
) -> list[_Views]:
    """Windows around the wanted of the rows of a block of frames."""
    parameters = model.psf.parameters_at(here.xyz)
    pixel = model.psf.pixel_size_nm
    views = []
    for together in neighbourhoods(here, frames.reach_nm):
        for own in range(together.rows.shape[1]):
            rows = together.rows.roll(-own, 1)
            rows = rows[together.kept[:, own] & wanted[rows[:, 0]]]
            wide = torch.div(frames.extent(rows), WIDER_PX * pixel, rounding_mode="floor")
            for size in wide.unique():
                for part in rows[wide == size].split(ROWS_AT_ONCE):
                    views.append(
                        _Views(
                            windows=frames.windows(part, parameters),
                            track=track[part[:, 0]],
                            known=known[part[:, 1:]][:, :, model.axes],
                        )
                    )
    return views


def _ready(
    waiting: list[_Views], ends: Tensor, *, before: int
) -> tuple[list[list[_Views]], list[_Views]]:
    """Views of molecules that end before a frame, some whole molecules at a time; and what is left
    for later."""
    by_shape: dict[tuple[int, int], list[_Views]] = {}
    for views in waiting:
        by_shape.setdefault(views.shape, []).append(views)
    alike = [_Views.cat(parts) for parts in by_shape.values()]
    if not alike:
        return [], []
    over = torch.cat([views.track[ends[views.track] < before] for views in alike])
    batch = torch.full((len(ends),), -1)
    which, count = over.unique(return_counts=True)
    batch[which] = torch.div(count.cumsum(0) - count, ROWS_AT_ONCE, rounding_mode="floor")
    ready: list[list[_Views]] = [[] for _ in range(int(batch.max()) + 1)]
    rest: list[_Views] = []
    for views in alike:
        of = batch[views.track]
        for number in of.unique().tolist():
            part = views[torch.nonzero(of == number)[:, 0]]
            (rest if number < 0 else ready[number]).append(part)
    return [parts for parts in ready if parts], rest


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
    crowded: Tensor
    """(k,) whether another molecule is near in any of their frames"""
    converged: Tensor


class _State(NamedTuple):
    """Unknowns of some molecules."""

    place: Tensor
    """(k, d) nm"""
    own: list[Tensor]
    """(n, q) of the rows of each shape: photons, background, and of each neighbour its position and
    its photons"""


class _Row(NamedTuple):
    """Of the rows of one shape, what is eliminated."""

    inverse: Tensor
    """(n, q, q) inverse information of a row's own unknowns"""
    score: Tensor
    """(n, q)"""
    follows: Tensor
    """(n, q, d) minus the change of these with the position"""


class _Slope(NamedTuple):
    """Log-likelihood of molecules, and its derivatives by their positions, where the unknowns of
    their rows take their best values."""

    level: Tensor
    """(k,)"""
    score: Tensor
    """(k, d)"""
    information: Tensor
    """(k, d, d)"""
    rows: list[_Row]


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """(n, ...) new where (n,) it is better."""
    return torch.where(better.view(-1, *[1] * (old.ndim - 1)), new, old)


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

    @property
    def longest(self) -> Tensor:
        """(d,) longest step, nm."""
        half = self.psf.pixel_size_nm / 2
        return torch.tensor([half, half, LONGEST_Z_NM], dtype=torch.float64)[self.axes]

    def fit(self, views: list[_Views], start: Tensor) -> _Fits:
        """Fit molecules, all of whose rows are in some views.

        Args:
            start: (molecules of the table, 3) nm.
        """
        which, index = torch.cat([each.track for each in views]).unique(return_inverse=True)
        rows = list(index.split([len(each.track) for each in views]))
        full = start[which]
        state = _State(full[:, self.axes], [self._own(each.windows) for each in views])
        slope = self._slope(views, rows, state, full)
        damping = torch.full((len(which),), 1e-3, dtype=torch.float64)
        moving = torch.ones(len(which), dtype=torch.bool)
        for _ in range(STEPS):
            diagonal = slope.information.diagonal(dim1=1, dim2=2)
            damped = slope.information + torch.diag_embed(damping[:, None] * diagonal)
            step = torch.linalg.solve_ex(damped, slope.score)[0]
            trial = self._moved(state, slope, step.clamp(-self.longest, self.longest), rows)
            new = self._slope(views, rows, trial, full)
            better = moving & (new.level >= slope.level - 1e-7 * slope.level.abs())
            length = ((trial.place - state.place) * diagonal.sqrt()).abs().amax(1)
            state = _State(
                _where(better, trial.place, state.place),
                [
                    _where(better[r], a, b)
                    for r, a, b in zip(rows, trial.own, state.own, strict=True)
                ],
            )
            kept = [
                _Row(*(_where(better[r], a, b) for a, b in zip(x, y, strict=True)))
                for r, x, y in zip(rows, new.rows, slope.rows, strict=True)
            ]
            slope = _Slope(
                level=_where(better, new.level, slope.level),
                score=_where(better, new.score, slope.score),
                information=_where(better, new.information, slope.information),
                rows=kept,
            )
            damping = torch.where(better, damping / 10, damping * 10)
            moving &= ~(better & (length < CONVERGED)) & (damping < 1e4)
            if not bool(moving.any()):
                break
        crowded = torch.zeros_like(moving)
        for index, each in zip(rows, views, strict=True):
            crowded[index] |= each.shape[0] > 1
        converged = ~moving & (damping < 1e4)
        found = self._fits(which, rows, full, state, slope, converged)
        return found._replace(crowded=crowded)

    def _own(self, windows: Windows) -> Tensor:
        """(n, q) unknowns of rows as they start."""
        photons = windows.photons[:, :, 0]
        beside = torch.cat([windows.xyz[:, 1:, self.axes], photons[:, 1:, None]], 2).flatten(1)
        return torch.cat([photons[:, :1], windows.background, beside], 1).double()

    def _moved(self, state: _State, slope: _Slope, step: Tensor, rows: Sequence[Tensor]) -> _State:
        """After a step of the positions; the unknowns of the rows follow."""
        d = len(self.axes)
        place = state.place + step
        if d == 3:
            place[:, 2] = place[:, 2].clamp(*self.depths_nm)
        step, moved = place - state.place, []
        for index, own, row in zip(rows, state.own, slope.rows, strict=True):
            change = row.inverse @ row.score[:, :, None] - row.follows @ step[index][:, :, None]
            change = change[:, :, 0]
            beside = change[:, 2:].unflatten(1, (-1, d + 1))
            beside[:, :, :d] = beside[:, :, :d].clamp(-self.longest, self.longest)
            new = own + change
            bright = [0, *range(2 + d, own.shape[1], d + 1)]
            new[:, bright] = torch.maximum(new[:, bright], 0.3 * own[:, bright]).clamp_min(1.0)
            new[:, 1] = new[:, 1].clamp_min(DARKEST)
            moved.append(new)
        return _State(place, moved)

    def _slope(
        self, views: list[_Views], rows: Sequence[Tensor], state: _State, full: Tensor
    ) -> _Slope:
        """Log-likelihood of the state, and its derivatives."""
        d, k = len(self.axes), len(full)
        xyz = full.clone()
        xyz[:, self.axes] = state.place
        level = xyz.new_zeros(k)
        score, information = xyz.new_zeros(k, d), xyz.new_zeros(k, d, d)
        kept = []
        for each, index, own in zip(views, rows, state.own, strict=True):
            logs, gradient, fisher = self._rows(each, xyz[index], own)
            inverse = torch.linalg.inv(fisher[:, d:, d:])
            follows = inverse @ fisher[:, d:, :d]
            level.index_add_(0, index, logs)
            pull = gradient[:, :d] - (follows.mT @ gradient[:, d:, None])[:, :, 0]
            score.index_add_(0, index, pull)
            information.index_add_(0, index, fisher[:, :d, :d] - fisher[:, :d, d:] @ follows)
            kept.append(_Row(inverse, gradient[:, d:], follows))
        return _Slope(level, score, information, kept)

    def _rows(self, views: _Views, xyz: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) log-likelihood of rows, (n, d + q) its score and (n, d + q, d + q) the information,
        of the position and the row's own unknowns.

        Args:
            xyz: (n, 3) nm, places of the rows' molecules.
            own: (n, q).
        """
        windows, d = views.windows, len(self.axes)
        n, k = windows.xyz.shape[:2]
        beside = own[:, 2:].unflatten(1, (k - 1, d + 1)) if k > 1 else own.new_zeros(n, 0, d + 1)
        places = windows.xyz.double()
        places[:, 0] = xyz - windows.origin.double()
        places[:, 1:, self.axes] = beside[:, :, :d]
        image = windows.psf.integrate_pixels_with_slopes(
            places.flatten(0, 1).to(windows.xyz), windows.parameters
        )
        image = image.flatten(2).unflatten(0, (n, k)).double()
        bright = torch.cat([own[:, :1], beside[:, :, d]], 1)[:, :, None]
        mean = (bright * image[:, :, 0]).sum(1) + own[:, 1:2] + windows.light[:, 0]
        mean = mean.clamp_min(DARKEST)
        level, score = self._pixels(windows, mean)
        slopes = bright[:, :, None] * image[:, :, [1 + axis for axis in self.axes]]
        by_beside = torch.cat([slopes[:, 1:], image[:, 1:, :1]], 2).flatten(1, 2)
        even = torch.ones_like(mean)[:, None]
        change = torch.cat([slopes[:, 0], image[:, 0, :1], even, by_beside], 1)
        seen_alone = change * self._information(windows, mean)[:, None]
        fisher = seen_alone @ change.mT
        gradient = (change @ score[:, :, None])[:, :, 0]
        # neighbours: what other frames say of them
        weight = torch.cat([views.known, 1 / bright[:, 1:].clamp_min(100.0) ** 2], 2).flatten(1)
        apart = torch.cat([windows.xyz[:, 1:, self.axes], windows.photons[:, 1:]], 2).flatten(1)
        apart = apart.double() - own[:, 2:]
        level = level - 0.5 * (weight * apart**2).sum(1)
        gradient[:, d + 2 :] += weight * apart
        at = torch.arange(d + 2, fisher.shape[1])
        fisher[:, at, at] += weight
        at = torch.arange(d, d + 2)
        fisher[:, at, at] += 1e-12
        return level, gradient, fisher

    def _pixels(self, windows: Windows, mean: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) log-likelihood, and (n, p) its derivatives by the expected photons."""
        around = torch.stack([mean * (1 - RELATIVE), mean * (1 + RELATIVE)], 1)
        logs = self.pixels.log_prob(windows.adu, around[:, :, None], windows.pixel)
        logs = logs[:, :, 0] * windows.seen[:, None]
        slope = (logs[:, 1] - logs[:, 0]) / (2 * RELATIVE * mean)
        return logs.mean(1).sum(1), slope

    def _information(self, windows: Windows, mean: Tensor) -> Tensor:
        """(n, p) Fisher information of each pixel."""
        excess, floor = (value.double() for value in windows.noise)
        at = np.interp(mean.log().numpy(), LEVELS.log().numpy(), self.gain)
        return windows.seen * torch.from_numpy(at) / (excess * mean + floor)

    def _fits(
        self,
        which: Tensor,
        rows: Sequence[Tensor],
        full: Tensor,
        state: _State,
        slope: _Slope,
        converged: Tensor,
    ) -> _Fits:
        k, axes = len(which), torch.tensor(self.axes)
        xyz = full.clone()
        xyz[:, self.axes] = state.place
        place, failed = torch.linalg.inv_ex(slope.information)
        photons, background, count, alone = xyz.new_zeros(4, k)
        follows = xyz.new_zeros(k, len(axes))
        for index, own, row in zip(rows, state.own, slope.rows, strict=True):
            photons.index_add_(0, index, own[:, 0])
            background.index_add_(0, index, own[:, 1])
            count.index_add_(0, index, torch.ones_like(own[:, 0]))
            alone.index_add_(0, index, row.inverse[:, 0, 0])
            follows.index_add_(0, index, row.follows[:, 0])
        with_place = -(place @ follows[:, :, None])[:, :, 0]
        covariance = xyz.new_full((k, 4, 4), torch.nan)
        covariance[:, axes[:, None], axes] = place
        covariance[:, 3, axes] = covariance[:, axes, 3] = with_place
        covariance[:, 3, 3] = alone - (follows * with_place).sum(1)
        known = (failed == 0) & (place.diagonal(dim1=1, dim2=2) > 0).all(1)
        return _Fits(
            which=which,
            xyz=xyz,
            covariance=covariance,
            photons=photons,
            background=background / count,
            crowded=torch.zeros_like(converged),
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
    wider = torch.ones_like(fit.covariance[:, 0])
    wider[:, :3] = (stated / found).nan_to_num(1.0).clamp_min(1.0)
    wider[~fit.crowded] = 1.0
    fit = fit._replace(covariance=fit.covariance * wider[:, :, None] * wider[:, None])
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
