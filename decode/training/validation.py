"""What a model makes of simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.forward import CameraPrior, PSFPrior, Simulation
from decode.metrics import coverage, match, normalized_errors, score
from decode.network.localizer import Localizer
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.psf import PSF, render
from decode.ranges import Range

__all__ = ["Isolated", "Validation", "characterize", "localize_isolated", "posterior_of"]


def posterior_of(model: Localizer, batch: Simulation) -> SetPosterior:
    """What a model infers from simulated movies, told the PSF as a user would know it."""
    context = model.context_map({name: batch.told[name] for name in model.context})
    posterior: SetPosterior = model(batch.frames, batch.camera, context.to(batch.frames.device), batch.pixel_size_nm)
    return posterior


@final
class Validation:
    """A fixed set of simulated movies, drawn from a recipe, and the figures of a model on them."""

    def __init__(self, config: TrainConfig, device: torch.device, n_movies: int = 24) -> None:
        rng = torch.Generator(device).manual_seed(config.seed + 7919)
        forward = config.forward_model()
        forward.psf.to(device)
        self._batches = [forward.sample(2, 8, (48, 48), rng) for _ in range(n_movies // 2)]
        self._psf = forward.psf
        self._min_photons = config.training.min_photons
        self._two_d = not config.network.axial

    @torch.no_grad()
    def __call__(self, model: Localizer) -> dict[str, float]:
        """Means over the movies by the rules of the SMLM Challenge 2016, and root mean squares over isolated molecules.

        Isolated molecules are alone within a micrometre, and have 1000 photons or more in the frame.
        """
        scores, over_bound, over_sigma = [], [], []
        for batch in self._batches:
            found = posterior_of(model, batch).point_estimate().to("cpu")
            truth = batch.emitters[batch.emitters.photons >= self._min_photons].to("cpu")
            result = score(truth, found, two_d=self._two_d, field_nm=(48 * batch.pixel_size_nm,) * 2)
            if result.tp + result.fp + result.fn:
                efficiency = result.efficiency_lateral if self._two_d else result.efficiency_3d
                found_any = efficiency if math.isfinite(efficiency) else 0.0
                scores.append((result.jaccard, result.rmse_lateral_nm, result.rmse_axial_nm, found_any))
            errors = _errors_of_isolated(batch, truth, found, self._psf, self._two_d)
            over_bound.append(errors[0])
            over_sigma.append(errors[1])
        jaccard, lateral, axial, efficiency = torch.tensor(scores).reshape(-1, 4).nanmean(0).tolist()
        bound, sigma = (float(torch.cat(e).square().mean().sqrt()) for e in (over_bound, over_sigma))
        return {
            "jaccard": jaccard,
            "rmse_lateral_nm": lateral,
            **({} if self._two_d else {"rmse_axial_nm": axial}),
            "efficiency": efficiency,
            "isolated_error_over_bound": bound,
            "isolated_error_over_sigma": sigma,
        }


def _errors_of_isolated(
    batch: Simulation, truth: EmitterSet, found: EmitterSet, psf: PSF, two_d: bool
) -> tuple[Tensor, Tensor]:
    """(m, 2) errors in x and y of the isolated molecules that were found: over their bound, over their stated sigma."""
    n_frames, height, width = batch.frames.shape[1:]
    distance = torch.cdist(truth.xyz[:, :2], truth.xyz[:, :2])
    distance[truth.frame[:, None] != truth.frame] = torch.inf
    distance.fill_diagonal_(torch.inf)
    px = truth.xyz[:, :2] / batch.pixel_size_nm
    inner = ((px > 5) & (px < torch.tensor([width - 5, height - 5]))).all(1)
    truth = truth[(distance.amin(1) > 1000) & (truth.photons >= 1000) & inner] if len(truth) > 1 else truth[:0]
    if not len(truth) or not len(found) or found.xyz_sigma is None:
        return torch.zeros(0, 2), torch.zeros(0, 2)
    to = torch.cdist(truth.xyz[:, :2], found.xyz[:, :2])
    to[truth.frame[:, None] != found.frame] = torch.inf
    nearest, which = to.min(1)
    hit = nearest < 250
    truth, found = truth[hit], found[which[hit]]
    column, row = (truth.xyz[:, :2] / batch.pixel_size_nm).long().unbind(1)
    background = batch.background.flatten(0, 1).cpu()[truth.frame, row, column]
    bound = torch.empty(len(truth), 2)
    device = batch.frames.device
    for movie in (truth.frame // n_frames).unique():
        of = truth.frame // n_frames == movie
        own = batch.psfs[int(movie)] if batch.psfs else psf
        bound[of] = cramer_rao_bound(
            own,
            _camera_of(batch, int(movie)),
            truth.xyz[of].to(device),
            truth.photons[of].to(device),
            background[of].to(device),
            parameters=batch.psf_parameters[movie].expand(int(of.sum()), -1) if own.parameter_names else None,
            two_d=two_d,
        )[:, :2].cpu()
    error = found.xyz[:, :2] - truth.xyz[:, :2]
    assert found.xyz_sigma is not None
    return error / bound, error / found.xyz_sigma[:, :2]


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
    """Errors of molecules that are alone in their frame, along x, y and z; NaN where z is not estimated."""

    found: float
    """fraction of the molecules"""
    rmse_nm: tuple[float, float, float]
    """root mean square errors"""
    bias_nm: tuple[float, float, float]
    """means of estimate minus truth"""
    bound_nm: tuple[float, float, float]
    """Cramer-Rao bounds (of one frame, with photons and background unknown), root mean squares over the molecules"""
    error_over_sigma: tuple[float, float, float]
    """standard deviations of (estimate - truth) / stated sigma"""
    coverage: tuple[float, float, float]
    """shares of the errors within the central 95 % of what the sigmas state"""
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
        model: what is measured.
        camera: fields are numbers.
        psf: draws the molecules, with its own parameters.
        photons, background: of each molecule; per pixel.
        z_nm: depth of all molecules.
        context: what the model is told; None tells it nothing.
        n: molecules.
    """
    rng = torch.Generator().manual_seed(seed)
    side = 40
    xyz = torch.full((n, 3), z_nm)
    xyz[:, :2] = (15 + 10 * torch.rand(n, 2, generator=rng)) * psf.pixel_size_nm
    light = torch.full((n,), photons)
    frame = 3 * torch.arange(n) + 1
    drawn = render(psf, frame=frame, xyz=xyz, photons=light, n_frames=3 * n, shape=(side, side))
    adu = camera.sample(background + drawn, rng).view(n, 3, side, side)
    told = model.context_map(context or {})
    parts = [model(adu[i : i + 32], camera, told, psf.pixel_size_nm).point_estimate() for i in range(0, n, 32)]
    found = EmitterSet.cat(replace(p, frame=p.frame + 96 * i) for i, p in enumerate(parts))
    two_d = not model.network.axial
    truth = EmitterSet(frame=frame, xyz=xyz, photons=light)
    pairs = match(truth, found, two_d=two_d)
    error = (found.xyz[pairs[:, 1]] - xyz[pairs[:, 0]]).double()
    if two_d:
        error[:, 2] = torch.nan
    normalized = normalized_errors(truth, found, pairs)
    bound = cramer_rao_bound(psf, camera, xyz, light, torch.full((n,), background), two_d=two_d)[:, :3]
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
    model: Localizer, config: TrainConfig, device: torch.device, *, n_movies: int = 3, depths: int = 1
) -> list[dict[str, float]]:
    """Figures by density, photons and depth, in the middle of the recipe's other ranges, on an EMCCD.

    Args:
        model, config, device: the model, the recipe it is measured by, and where.
        n_movies: of 6 frames of 56 x 56 pixels, for each pair of density and mean flux.
        depths: slices of equal depth that molecules are told apart by, true ones and false ones alike.

    Returns:
        One mapping per density, mean flux and slice (`z_nm` is its middle, where there are several; empty slices are
        left out), for a model's record.
    """
    low, high = config.scene.flux_photons
    fluxes = [f for f in (500.0, 2000.0, 8000.0) if low <= f <= high] or [math.sqrt(low * high)]
    most = config.scene.density_per_um2[1]
    background = math.sqrt(math.prod(config.scene.background_photons))
    psf, camera = config.psf, config.camera
    if isinstance(psf, PSFPrior):
        sigma = math.sqrt(math.prod(psf.sigma_px))
        psf = replace(psf, sigma_px=(sigma, sigma), halo_fraction=(0.0, 0.0), told_error=0.0, pupil_fraction=0.0)
    if isinstance(camera, CameraPrior):
        camera = replace(camera, emccd_fraction=1.0, bad_pixels=(0.0, 0.0))
    two_d = not config.network.axial
    rows = []
    for density in (most / 30, most / 6, most / 3, most * 2 / 3, most):
        for flux in fluxes:
            scene = replace(
                config.scene,
                density_per_um2=(density, density),
                flux_photons=(flux, flux),
                flux_variation=(0.3, 0.3),
                background_photons=(background, background),
                filaments=0.0,
                flicker=0.0,
            )
            recipe = replace(config, scene=scene, psf=psf, camera=camera)
            forward = recipe.forward_model()
            forward.psf.to(device)
            rng = torch.Generator(device).manual_seed(config.seed + 104729)
            batch = forward.sample(n_movies, 6, (56, 56), rng)
            found = posterior_of(model, batch).point_estimate().to("cpu")
            truth = batch.emitters.to("cpu")
            for middle, true_part, found_part in _slices(truth, found, config.scene.z_nm, depths, two_d):
                result = score(
                    true_part,
                    found_part,
                    two_d=two_d,
                    min_photons=flux / 4,
                    field_nm=(56 * config.pixel_size_nm,) * 2,
                )
                if depths > 1 and not result.tp + result.fp + result.fn:
                    continue
                rows.append(
                    {
                        "density_per_um2": round(density, 3),
                        "flux_photons": flux,
                        **({"z_nm": round(middle, 1)} if depths > 1 else {}),
                        "background_photons": round(background, 1),
                        **({"psf_sigma_px": round(psf.sigma_px[0], 3)} if isinstance(psf, PSFPrior) else {}),
                        "jaccard": round(result.jaccard, 4),
                        "rmse_lateral_nm": round(result.rmse_lateral_nm, 2),
                        **({} if two_d else {"rmse_axial_nm": round(result.rmse_axial_nm, 2)}),
                    }
                )
    return rows


def _slices(
    truth: EmitterSet, found: EmitterSet, z_nm: Range, n: int, two_d: bool
) -> Iterator[tuple[float, EmitterSet, EmitterSet]]:
    """Slices of depth: their middle, their molecules, and what was found of them or, without any molecule, in them."""
    edges = torch.linspace(*z_nm, n + 1)
    pairs = match(truth, found, two_d=two_d)
    true_slice, found_slice = (torch.bucketize(of.xyz[:, 2].contiguous(), edges[1:-1]) for of in (truth, found))
    found_slice[pairs[:, 1]] = true_slice[pairs[:, 0]]
    for i in range(n):
        yield float(edges[i : i + 2].mean()), truth[true_slice == i], found[found_slice == i]
