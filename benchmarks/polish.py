"""Effect of polishing: error over the Cramer-Rao bound, scores before and after by density,
molecules per second.

    python benchmarks/polish.py [--model gaussian-2d] [--psf psf.h5] [--n 600] [--movies 4] [--seed
    1] [--only whole]

Without a PSF, a Gaussian of 1.3 pixels; with one (or a model that carries one), depths of +-600 nm.
Densities are molecules on at once per square micrometre; photons 1000 to 5000 a frame; molecules
stay on for 1.5 to 3.5 frames. Molecules per second of the whole machine are those of movies on
disk, in which the network has found them before.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from decode.acquisition import acquisition_for
from decode.emitters import EmitterSet
from decode.forward import ForwardModel
from decode.io.cameras import CameraFile
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import PSFFile, read_psf
from decode.likelihood import polish
from decode.metrics import match, normalized_errors, score
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.priors.scene import Scene
from decode.verbs.localize import localize_movie
from decode.verbs.polish import polish_movie

CAMERAS = {
    "EMCCD": Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    ),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}
FIELD_PX = 64
BACKGROUND = 25.0
PARTS = ["isolated", "whole", "crowded"]


def network_finds(model: Localizer, psf: PSF, camera: Camera, adu: Tensor) -> EmitterSet:
    """Molecules in (frames, y, x) counts."""
    context = model.context_map({"psf_sigma_px": 1.3} if model.context else {})
    posterior = model(adu[None], camera, context, psf.pixel_size_nm)
    return replace(posterior, recalibration=None).point_estimate()  # as `localize` polishes


def isolated(model: Localizer, psf: PSF, camera: Camera, n: int, seed: int) -> None:
    """Molecules of 1000 to 4000 photons, each in one frame between two empty ones."""
    axial, pixel, side = model.network.axial, psf.pixel_size_nm, 48
    rng = torch.Generator().manual_seed(seed)
    depth = 600.0 if axial else 0.0
    low, span = (
        torch.tensor([22 * pixel, 22 * pixel, -depth]),
        torch.tensor([4 * pixel, 4 * pixel, 2 * depth]),
    )
    xyz = low + torch.rand(n, 3, generator=rng) * span
    photons = 1000 * 4 ** torch.rand(n, generator=rng)
    background = torch.full((n,), BACKGROUND)
    bound = cramer_rao_bound(psf, camera, xyz, photons, background, two_d=not axial)[:, :3]
    over_bound: list[tuple[Tensor, Tensor]] = []
    over_sigma, seconds, share = [], 0.0, []
    for i in range(0, n, 32):
        of, light = slice(i, i + 32), photons[i : i + 32]
        frame = 3 * torch.arange(len(light)) + 1
        mean = render(
            psf,
            frame=frame,
            xyz=xyz[of],
            photons=light,
            n_frames=3 * len(light),
            shape=(side, side),
        )
        adu = camera.sample(mean + BACKGROUND, rng)
        found = network_finds(model, psf, camera, adu)
        start = time.process_time()
        better = polish(psf, camera, adu, found)
        seconds += time.process_time() - start
        truth = EmitterSet(frame=frame, xyz=xyz[of], photons=light)
        rows, which = match(truth, found, two_d=not axial).unbind(1)
        errors = [
            (table.xyz[which] - truth.xyz[rows]) / bound[of][rows] for table in (found, better)
        ]
        over_bound.append((errors[0], errors[1]))
        over_sigma.append(normalized_errors(truth, better, torch.stack([rows, which], 1)))
        assert better.polished is not None
        share.append(better.polished.double())
    axes = slice(0, 3 if axial else 2)
    before, after = (
        torch.cat(e)[:, axes].square().mean(0).sqrt().tolist()
        for e in zip(*over_bound, strict=True)
    )
    spread = torch.cat(over_sigma)[:, axes].square().mean(0).sqrt().tolist()
    print(
        f"  found {len(torch.cat(over_sigma)) / n:.3f}, polished {torch.cat(share).mean():.3f};  "
        "RMSE / bound network "
        + " ".join(f"{x:.3f}" for x in before)
        + ", polished "
        + " ".join(f"{x:.3f}" for x in after)
        + ";  error over stated sigma "
        + " ".join(f"{x:.2f}" for x in spread)
        + f";  {len(torch.cat(share)) / seconds:.0f} molecules per core second"
    )


def whole(
    model: Localizer,
    psf: PSF,
    camera: Camera,
    *,
    density: float,
    frames: int,
    rounds: int,
    seed: int,
) -> None:
    """Print how many molecules of a movie on disk all cores polish in a second, once the network
    has found them."""
    rng = torch.Generator().manual_seed(seed)
    movie = ForwardModel.of(_scene(model, density), psf, camera).sample(
        1, frames, (FIELD_PX, FIELD_PX), rng
    )
    file = PSFFile(psf=psf, z_range_nm=(-600.0, 600.0))
    with TemporaryDirectory() as folder:
        write_movie(Path(folder) / "movie.tif", movie.frames[0].to(torch.uint16).numpy())
        rates = []
        with open_movie(Path(folder) / "movie.tif") as opened:
            acquisition = acquisition_for(
                opened,
                model,
                camera=CameraFile(camera=camera, pixel_size_nm=psf.pixel_size_nm),
                psf_sigma_nm=130.0 if model.context else None,
            )
            device = torch.device("cpu")
            found = localize_movie(opened, model, acquisition, psf=file, device="cpu", polish=False)
            chunks = list(found)
            for _ in range(rounds):
                start = time.perf_counter()
                polished = polish_movie(iter(chunks), opened, psf, acquisition.camera, device)
                n = sum(len(chunk.molecules) for chunk in polished)
                rates.append(n / (time.perf_counter() - start))
    print(
        f"  density {density:.1f}, {n} molecules in {frames} frames: polished {median(rates):.0f} "
        "a second "
        f"(lowest {min(rates):.0f}, highest {max(rates):.0f} of {rounds} rounds) by "
        f"{torch.get_num_threads()} threads"
    )


def _scene(model: Localizer, density: float) -> Scene:
    depth = 600.0 if model.network.axial else 0.0
    return Scene(
        density_per_um2=(density, density),
        flux_photons=(1000.0, 5000.0),
        flux_variation=(0.3, 0.3),
        on_time_frames=(1.5, 3.5),
        z_nm=(-depth, depth),
        background_photons=(10.0, 60.0),
        background_contrast=(0.0, 0.3),
        background_drift=(0.0, 0.0),
    )


def crowded(
    model: Localizer, psf: PSF, camera: Camera, *, density: float, movies: int, seed: int
) -> None:
    """Blinking movies of 8 frames, half of them filaments, on an uneven background."""
    axial = model.network.axial
    rng = torch.Generator().manual_seed(seed)
    forward = ForwardModel.of(_scene(model, density), psf, camera)
    tables: list[tuple[EmitterSet, EmitterSet, EmitterSet]] = []
    seconds, frames = 0.0, 8
    for i in range(movies):
        movie = forward.sample(1, frames, (FIELD_PX, FIELD_PX), rng)
        found = network_finds(model, psf, camera, movie.frames[0])
        start = time.process_time()
        better = polish(psf, camera, movie.frames[0], found)
        seconds += time.process_time() - start
        truth, found, better = (
            replace(t, frame=t.frame + i * frames) for t in (movie.emitters, found, better)
        )
        tables.append((truth, found, better))
    truth, found, better = (EmitterSet.cat(t) for t in zip(*tables, strict=True))
    field = (FIELD_PX * psf.pixel_size_nm,) * 2
    line = f"  {density:4.1f}  {len(found):6d}"
    for table in (found, better):
        result = score(truth, table, two_d=not axial, field_nm=field, min_photons=250)
        errors = normalized_errors(truth, table, match(truth, table, two_d=not axial))
        line += (
            f"   | {result.jaccard:.3f} {result.rmse_lateral_nm:5.1f} "
            f"{result.median_lateral_nm:5.1f}"
        )
        line += f" {result.rmse_axial_nm:5.1f} {result.efficiency_3d:5.1f}" if axial else ""
        line += f" {result.efficiency_lateral:5.1f}  {errors[:, :2].square().mean().sqrt():.2f}"
    assert better.polished is not None
    print(
        f"{line}   | {better.polished.double().mean():.3f}  {len(found) / seconds:.0f}", flush=True
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gaussian-2d")
    parser.add_argument("--psf", help="PSF file; without, the model's, or a Gaussian")
    parser.add_argument("--n", type=int, default=600, help="isolated molecules")
    parser.add_argument("--movies", type=int, default=4, help="movies per density")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--cameras", nargs="+", default=list(CAMERAS), help="only those the model was trained for"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    psf = (
        read_psf(arguments.psf).psf
        if arguments.psf
        else model.psf or GaussianPSF(130.0, pixel_size_nm=100.0)
    )
    chosen = {name: CAMERAS[name] for name in arguments.cameras}
    cameras = chosen if model.camera is None else {"the model's camera": model.camera}
    for name, camera in cameras.items():
        print(name)
        if "isolated" in arguments.only:
            isolated(model, psf, camera, arguments.n, arguments.seed)
        if "whole" in arguments.only:
            for density, frames in ((0.2, 2400), (1.0, 600)):
                whole(
                    model,
                    psf,
                    camera,
                    density=density,
                    frames=frames,
                    rounds=3,
                    seed=arguments.seed,
                )
        if "crowded" not in arguments.only:
            continue
        figures = "Jaccard, lateral RMSE, median" + (
            ", axial RMSE, 3D efficiency" if model.network.axial else ""
        )
        print(
            f"  density, molecules | {figures}, efficiency, error over sigma: network | polished | "
            "share, per core s"
        )
        for density in (0.2, 1.0, 2.0, 4.0):
            movies = arguments.movies * (4 if density < 0.5 else 1)
            crowded(model, psf, camera, density=density, movies=movies, seed=arguments.seed)


if __name__ == "__main__":
    main()
