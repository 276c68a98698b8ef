"""doctor: a test of the installation, from simulation to score."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch

from decode.config import TrainConfig, from_mapping
from decode.devices import choose_device
from decode.io.cameras import read_camera
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.models import load_model, shipped_models
from decode.priors.camera import CameraPrior
from decode.priors.psf import MeasuredPSF, PSFPrior
from decode.priors.scene import Scene
from decode.verbs.accelerator import localize_on, polish_on, train_on
from decode.verbs.evaluate import evaluate
from decode.verbs.localize import localize_file
from decode.verbs.simulate import simulate_files
from decode.version import __version__

__all__ = ["Check", "checks_of", "doctor"]

MOVIE = TrainConfig(
    seed=1,
    scene=Scene(
        density_per_um2=(0.4, 0.4),
        flux_photons=(3000.0, 3000.0),
        flux_variation=(0.3, 0.3),
        on_time_frames=(3.0, 3.0),
        background_photons=(20.0, 20.0),
    ),
    psf=PSFPrior(sigma_px=(1.3, 1.3), halo_fraction=(0.0, 0.0)),
    camera=CameraPrior(emccd_fraction=0.0),
)
"""an easy movie: bright molecules, most of them alone"""


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one test."""

    name: str
    ok: bool
    detail: str


def doctor() -> Iterator[Check]:
    """Test the installation; takes less than a minute.

    Yields:
        Versions, device, each shipped model, and how well it finds the molecules of a simulated
        movie, through every file format on the way.  Of a GPU, whether it trains, localizes and
        polishes as the CPU does, and how fast.
    """
    yield _try("versions", _versions)
    yield _try("device", _device)
    device = choose_device("auto")
    if device.type == "cuda":
        yield from checks_of(device)
    names = list(shipped_models())
    if not names:
        yield Check(
            name="models", ok=False, detail="none came with the package; install decode again"
        )
    for name in names:
        yield _try(f"model {name}", partial(_model, name))
        yield _try(f"movie with {name}", partial(_movie, name))


def checks_of(device: torch.device) -> Iterator[Check]:
    """Compare a device with the CPU: training, localizing and polishing."""
    yield _try("training on the GPU", partial(train_on, device, MOVIE))
    yield _try("localizing on the GPU", partial(localize_on, device, MOVIE))
    yield _try("polishing on the GPU", partial(polish_on, device, MOVIE))


def _try(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=attempt())
    except Exception as error:  # whatever is broken here is what the doctor is asked for
        return Check(
            name=name, ok=False, detail=f"{' '.join(str(error).split())} ({type(error).__name__})"
        )


def _versions() -> str:
    versions = {
        "decode": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }
    return ", ".join(
        f"{name} {version}" for name, version in (versions | {"numpy": np.__version__}).items()
    )


def _device() -> str:
    device = choose_device("auto")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads; PyTorch sees no GPU"


def _model(name: str) -> str:
    model = load_model(name)
    n_weights = sum(p.numel() for p in model.parameters())
    version = model.record.decode or "unknown"
    return f"{n_weights / 1e6:.2f} million weights, trained by decode {version}"


def _movie(name: str) -> str:
    model = load_model(name)
    with tempfile.TemporaryDirectory() as folder:
        movie, truth, psf_file = (
            Path(folder, file) for file in ("movie.tif", "truth.csv", "psf.h5")
        )
        config, psf = MOVIE, None
        if model.network.axial:  # conditioned on a calibrated PSF; molecules lie in depth
            pupil = from_mapping(TrainConfig, model.record.config, name).forward_model().psf
            write_psf(psf_file, PSFFile(psf=pupil, z_range_nm=(-600.0, 600.0)))
            scene = replace(MOVIE.scene, z_nm=(-300.0, 300.0))
            config, psf = (
                replace(MOVIE, scene=scene, psf=MeasuredPSF(file=str(psf_file))),
                read_psf(psf_file),
            )
        made = simulate_files(config, movie, truth, 40, size_px=48)
        camera = read_camera(movie.with_name("movie_camera.yaml"))
        sigma_nm = None if psf else float(made.psf_parameters[0, 0])
        localize_file(
            movie, model, Path(folder, "out"), camera=camera, psf_sigma_nm=sigma_nm, psf=psf
        )
        result = evaluate(Path(folder, "out", "movie.csv"), truth, two_d=True, min_photons=300)
    figures = f"Jaccard {result.jaccard:.2f}, RMSE {result.rmse_lateral_nm:.0f} nm"
    jaccard, rmse_nm = (0.7, 50) if psf else (0.8, 25)
    if not (result.jaccard > jaccard and result.rmse_lateral_nm < rmse_nm):
        raise RuntimeError(
            f"{figures}, where better than {jaccard:g} and {rmse_nm} nm are expected"
        )
    return figures
