"""Validation: scores of a model on simulated movies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.forward import Simulation
from decode.metrics import Score, coverage, match, normalized_errors, score
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.psf import PSF, render
from decode.ranges import Range

__all__ = [
    "Figures",
    "Isolated",
    "Validation",
    "characterize",
    "localize_isolated",
    "posterior_of",
]

ReadOut: TypeAlias = Callable[[SetPosterior], EmitterSet]
"""molecules of a posterior"""

SIDE_PX, N_FRAMES, MOVIES_AT_ONCE = 48, 8, 2
"""side and number of frames of the movies of a validation, and movies that are scored together"""
MARGIN_PX = 5
"""distance from the border within which molecules lack part of their light"""
ISOLATION_NM, MIN_PHOTONS = 1000.0, 1000.0
"""least distance to the next molecule, and least photons, of molecules that are compared with their
bound"""
REACH_NM = 250.0
"""largest distance of a localization from its isolated molecule"""


def posterior_of(model: Localizer, batch: Simulation) -> SetPosterior:
    """The posterior of simulated movies, conditioned on the PSF as a user would know it."""
    known = batch.conditioning.values
    context = model.context_map({name: known[name] for name in model.context})
    context = context.to(batch.frames.device, non_blocking=True)
    posterior: SetPosterior = model(batch.frames, batch.camera, context, batch.pixel_size_nm)
    return posterior


@final
@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over the movies of a validation by the rules of the SMLM Challenge 2016, and root mean
    square errors of isolated molecules.

    Isolated molecules are alone within a micrometre, and have 1000 photons or more in the frame.
    """

    jaccard: float
    rmse_lateral_nm: float
    rmse_axial_nm: float | None = None
    """None in 2D"""
    efficiency: float
    """lateral in 2D, else 3D"""
    isolated_error_over_bound: float
    isolated_error_over_sigma: float

    @staticmethod
    def of(row: Mapping[str, float]) -> Figures:
        """Figures from a row that also holds other facts, such as the step."""
        return Figures(**{f.name: row[f.name] for f in fields(Figures) if f.name in row})

    def row(self) -> dict[str, float]:
        """The known figures, as in the record of a training."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@final
class Validation:
    """A fixed set of simulated movies, drawn from a recipe, and the scores of models on them.

    Args:
        config: the recipe.
        device: device of simulations and models.
        n_movies: an even number of movies.
        read_out: reads molecules from a posterior.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        n_movies: int = 24,
        read_out: ReadOut = SetPosterior.point_estimate,
    ) -> None:
        rng = torch.Generator(device).manual_seed(config.seed + 7919)
        forward = config.forward_model()
        shape = (SIDE_PX, SIDE_PX)
        self._batches = [
            forward.sample(MOVIES_AT_ONCE, N_FRAMES, shape, rng)
            for _ in range(n_movies // MOVIES_AT_ONCE)
        ]
        self._min_photons = config.training.min_photons
        self._two_d = not config.network.axial
        self._read_out = read_out

    @torch.no_grad()
    def __call__(self, model: Localizer) -> Figures:
        """Scores of a model."""
        scores, errors = [], []
        for batch in self._batches:
            found = self._read_out(posterior_of(model, batch)).to("cpu")
            truth = batch.emitters[batch.emitters.photons >= self._min_photons].to("cpu")
            field_nm = (SIDE_PX * batch.pixel_size_nm,) * 2
            result = score(truth, found, two_d=self._two_d, field_nm=field_nm)
            if result.tp + result.fp + result.fn:
                scores.append(self._row(result))
            errors.append(_errors_of_isolated(batch, truth, found, two_d=self._two_d))
        jaccard, lateral, axial, efficiency = (
            torch.tensor(scores).reshape(-1, 4).nanmean(0).tolist()
        )
        return Figures(
            jaccard=jaccard,
            rmse_lateral_nm=lateral,
            rmse_axial_nm=None if self._two_d else axial,
            efficiency=efficiency,
            isolated_error_over_bound=_rms(torch.cat([e.over_bound for e in errors])),
            isolated_error_over_sigma=_rms(torch.cat([e.over_sigma for e in errors])),
        )

    def _row(self, result: Score) -> tuple[float, float, float, float]:
        """Jaccard, lateral and axial RMSE, and efficiency, which is 0 for a model that finds
        nothing."""
        efficiency = result.efficiency_lateral if self._two_d else result.efficiency_3d
        if not math.isfinite(efficiency):
            efficiency = 0.0
        return result.jaccard, result.rmse_lateral_nm, result.rmse_axial_nm, efficiency


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


class _Errors(NamedTuple):
    """Errors in x and y of isolated molecules, (m, 2) each."""

    over_bound: Tensor
    over_sigma: Tensor


def _errors_of_isolated(
    batch: Simulation, truth: EmitterSet, found: EmitterSet, *, two_d: bool
) -> _Errors:
    """Errors of the isolated molecules that were found."""
    truth = truth[_isolated(truth, batch)]
    if not len(truth) or not len(found) or found.xyz_sigma is None:
        return _Errors(torch.zeros(0, 2), torch.zeros(0, 2))
    distance = torch.cdist(truth.xyz[:, :2], found.xyz[:, :2])
    distance[truth.frame[:, None] != found.frame] = torch.inf
    nearest, which = distance.min(1)
    hit = nearest < REACH_NM
    truth, sigma = truth[hit], found.xyz_sigma[which[hit], :2]
    error = found.xyz[which[hit], :2] - truth.xyz[:, :2]
    return _Errors(error / _bounds(batch, truth, two_d=two_d), error / sigma)


def _isolated(truth: EmitterSet, batch: Simulation) -> Tensor:
    """(n,) whether molecules are bright, inside the frame, and far from all others."""
    if len(truth) < 2:
        return torch.zeros(len(truth), dtype=torch.bool)
    height, width = batch.frames.shape[2:]
    distance = torch.cdist(truth.xyz[:, :2], truth.xyz[:, :2])
    distance[truth.frame[:, None] != truth.frame] = torch.inf
    distance.fill_diagonal_(torch.inf)
    px = truth.xyz[:, :2] / batch.pixel_size_nm
    far = torch.tensor([width - MARGIN_PX, height - MARGIN_PX])
    inside = ((px > MARGIN_PX) & (px < far)).all(1)
    return (distance.amin(1) > ISOLATION_NM) & (truth.photons >= MIN_PHOTONS) & inside


def _bounds(batch: Simulation, truth: EmitterSet, *, two_d: bool) -> Tensor:
    """(n, 2) Cramer-Rao bounds of x and y of true molecules, by PSF and camera of their movies."""
    n_frames, device = batch.frames.shape[1], batch.frames.device
    column, row = (truth.xyz[:, :2] / batch.pixel_size_nm).long().unbind(1)
    background = batch.background.flatten(0, 1).cpu()[truth.frame, row, column]
    bound = torch.empty(len(truth), 2)
    for movie in (truth.frame // n_frames).unique():
        rows = truth.frame // n_frames == movie
        parameters = None
        if batch.psf_parameters.shape[1]:
            parameters = batch.psf_parameters[movie].expand(int(rows.sum()), -1)
        bound[rows] = cramer_rao_bound(
            batch.psfs[int(movie)],
            _camera_of(batch, int(movie)),
            truth.xyz[rows].to(device),
            truth.photons[rows].to(device),
            background[rows].to(device),
            parameters=parameters,
            two_d=two_d,
        )[:, :2].cpu()
    return bound


def _camera_of(batch: Simulation, movie: int) -> Camera:
    """The camera of one movie, with numbers: the median of its maps."""
    camera = replace(batch.camera, bad=None)
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    maps = {k: v[movie] if v.ndim == 4 else v for k, v in values.items() if isinstance(v, Tensor)}
    numbers: dict[str, Any] = {k: float(v.median()) for k, v in maps.items()}
    return replace(camera, **numbers)


@final
@dataclass(frozen=True, kw_only=True)
class Isolated:
    """Errors along x, y and z of molecules that are alone in their frame.

    NaN along z where it is not estimated.
    """

    found: float
    """fraction of the molecules"""
    rmse_nm: tuple[float, float, float]
    """root mean square errors"""
    bias_nm: tuple[float, float, float]
    """means of estimate minus truth"""
    bound_nm: tuple[float, float, float]
    """root mean square Cramer-Rao bounds of one frame, with photons and background unknown"""
    error_over_sigma: tuple[float, float, float]
    """standard deviations of (estimate - truth) / stated sigma"""
    coverage: tuple[float, float, float]
    """shares of the errors within the central 95 % interval of the stated sigmas"""
    photons_ratio: float
    """mean of estimated over true photons"""


@torch.no_grad()
def localize_isolated(
    model: Localizer,
    camera: Camera,
    psf: PSF,
    *,
    photons: float,
    background: float,
    z_nm: float = 0.0,
    context: Mapping[str, float] | None = None,
    n: int = 500,
    seed: int = 0,
) -> Isolated:
    """Localize single molecules, each in one frame between two empty ones, at random places.

    Args:
        model: the model to score.
        camera: fields are numbers.
        psf: draws the molecules, with its own parameters.
        photons, background: photons of each molecule; background per pixel.
        z_nm: depth of all molecules.
        context: values that the model is conditioned on; None: none.
        n: number of molecules.
    """
    rng = torch.Generator().manual_seed(seed)
    side = 40
    xyz = torch.full((n, 3), z_nm)
    xyz[:, :2] = (15 + 10 * torch.rand(n, 2, generator=rng)) * psf.pixel_size_nm
    light = torch.full((n,), photons)
    frame = 3 * torch.arange(n) + 1
    drawn = render(psf, frame=frame, xyz=xyz, photons=light, n_frames=3 * n, shape=(side, side))
    adu = camera.sample(background + drawn, rng).view(n, 3, side, side)
    known = model.context_map(context or {})
    parts = [
        model(adu[i : i + 32], camera, known, psf.pixel_size_nm).point_estimate()
        for i in range(0, n, 32)
    ]
    found = EmitterSet.cat(replace(p, frame=p.frame + 96 * i) for i, p in enumerate(parts))
    two_d = not model.network.axial
    truth = EmitterSet(frame=frame, xyz=xyz, photons=light)
    pairs = match(truth, found, two_d=two_d)
    error = (found.xyz[pairs[:, 1]] - xyz[pairs[:, 0]]).double()
    if two_d:
        error[:, 2] = torch.nan
    normalized = normalized_errors(truth, found, pairs)
    even = torch.full((n,), background)
    bound = cramer_rao_bound(psf, camera, xyz, light, even, two_d=two_d)[:, :3]
    return Isolated(
        found=len(pairs) / n,
        rmse_nm=_by_axis(error.square().mean(0).sqrt()),
        bias_nm=_by_axis(error.mean(0)),
        bound_nm=_by_axis(bound.square().mean(0).sqrt()),
        error_over_sigma=_by_axis(normalized.std(0)),
        coverage=_by_axis(coverage(normalized, 0.95)),
        photons_ratio=float(found.photons[pairs[:, 1]].mean()) / photons,
    )


def _by_axis(values: Tensor) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


@torch.no_grad()
def characterize(
    model: Localizer,
    config: TrainConfig,
    device: torch.device,
    *,
    n_movies: int = 3,
    depths: int = 1,
) -> list[dict[str, float]]:
    """Scores by density, photons and depth, in the middle of the recipe's other ranges.

    Args:
        model: the model to score.
        config: the recipe by which it is scored; its camera is an EMCCD where it has a range.
        device: device of simulations and model.
        n_movies: number of movies of 6 frames of 56 x 56 pixels, for each pair of density and mean
            flux.
        depths: number of slices of equal depth, each with scores of its own.

    Returns:
        One mapping per density, mean flux and slice, for a model's record.  With several slices
        `z_nm` is the middle of each, and empty ones are left out.
    """
    config, widths = _with_middles(config)
    forward = config.forward_model()
    n_frames, side = 6, 56
    field_nm = (side * config.pixel_size_nm,) * 2
    two_d = not config.network.axial
    rows = []
    for density, flux in _conditions(config):
        background, _ = config.scene.background_photons
        scene = replace(config.scene, density_per_um2=(density, density), flux_photons=(flux, flux))
        model_of_movies = replace(forward, scene=scene, psfs=forward.psfs.anew())
        rng = torch.Generator(device).manual_seed(config.seed + 104729)
        batch = model_of_movies.sample(n_movies, n_frames, (side, side), rng)
        found = posterior_of(model, batch).point_estimate().to("cpu")
        truth = batch.emitters.to("cpu")
        for part in _slices(truth, found, scene.z_nm, depths, two_d=two_d):
            result = score(
                part.truth, part.found, two_d=two_d, min_photons=flux / 4, field_nm=field_nm
            )
            if depths > 1 and not result.tp + result.fp + result.fn:
                continue
            row = {"density_per_um2": round(density, 3), "flux_photons": flux}
            if depths > 1:
                row["z_nm"] = round(part.middle_nm, 1)
            row |= {"background_photons": round(background, 1), **widths}
            row["jaccard"] = round(result.jaccard, 4)
            row["rmse_lateral_nm"] = round(result.rmse_lateral_nm, 2)
            if not two_d:
                row["rmse_axial_nm"] = round(result.rmse_axial_nm, 2)
            rows.append(row)
    return rows


def _conditions(config: TrainConfig) -> list[tuple[float, float]]:
    """Densities and mean fluxes at which a model is scored."""
    low, high = config.scene.flux_photons
    fluxes = [flux for flux in (500.0, 2000.0, 8000.0) if low <= flux <= high]
    fluxes = fluxes or [math.sqrt(low * high)]
    most = config.scene.density_per_um2[1]
    densities = (most / 30, most / 6, most / 3, most * 2 / 3, most)
    return [(density, flux) for density in densities for flux in fluxes]


def _with_middles(config: TrainConfig) -> tuple[TrainConfig, dict[str, float]]:
    """The recipe in the middle of its ranges, and its PSF's width where that is one of them."""
    background = math.sqrt(math.prod(config.scene.background_photons))
    scene = replace(
        config.scene,
        flux_variation=(0.3, 0.3),
        background_photons=(background, background),
        filaments=0.0,
        flicker=0.0,
    )
    psf = config.psf.typical()
    middle = replace(config, scene=scene, psf=psf, camera=config.camera.typical())
    return middle, psf.figures()


class _Slice(NamedTuple):
    """True molecules between two depths, and their localizations.

    Localizations without a true molecule count by their own depth.
    """

    middle_nm: float
    truth: EmitterSet
    found: EmitterSet


def _slices(
    truth: EmitterSet, found: EmitterSet, z_nm: Range, n: int, *, two_d: bool
) -> Iterator[_Slice]:
    """Slices of equal depth."""
    edges = torch.linspace(*z_nm, n + 1)
    pairs = match(truth, found, two_d=two_d)
    true_slice = torch.bucketize(truth.xyz[:, 2].contiguous(), edges[1:-1])
    found_slice = torch.bucketize(found.xyz[:, 2].contiguous(), edges[1:-1])
    found_slice[pairs[:, 1]] = true_slice[pairs[:, 0]]
    for i in range(n):
        middle = float(edges[i : i + 2].mean())
        yield _Slice(middle, truth[true_slice == i], found[found_slice == i])
