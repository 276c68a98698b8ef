"""Comparison with Picasso (Schnitzbauer et al., Nature Protocols 12, 1198, 2017) on the same
simulated movies.

    python benchmarks/picasso.py [DATA] [--movie sim_2d sim_astigmatic] [--model gaussian-2d
    my-3d.safetensors]

Picasso runs in a virtual environment of its own (--venv or PICASSO_VENV), which is made, and
`picassosr` installed from the Python package index, where there is none.  It gets the camera and,
in 3D, its own calibration from the movie's beads, both by its Gaussians and by its splines, fitted
by maximum likelihood.  Box, least net gradient and the share of fits kept by their quality are
those with the best efficiency on the very movie that is scored, which no user could choose; nothing
of decode is chosen that way.  Both tables are scored by `decode.metrics` as the SMLM Challenge
does: a constant offset is subtracted, and molecules below 300 photons need not be found.

DATA holds sim_2d and sim_astigmatic, each with frames.tif, beads.tif, activations.csv and
acquisition.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from data import add_data, folder

from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile
from decode.io.psfs import PSFFile, read_psf
from decode.io.tables import read_table
from decode.metrics import Score, score
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera
from decode.verbs.localize import localize_file

ROOT = Path(__file__).parents[1]
SETTINGS = {
    False: [f"{method}:{box}" for method in ("gaussmle", "spline-mle") for box in (7, 9, 11)],
    True: [f"{method}:{box}" for method in ("gaussmle", "gaussmle-spherical") for box in (5, 7, 9)],
}
"""methods and boxes of Picasso that are tried, in 3D and in 2D"""
GRADIENTS = (1000.0, 1400.0, 2000.0, 2800.0)
KEPT = (1.0, 0.9, 0.8)
"""shares of the fits that are kept: those of the least distance to the calibration, or of the
largest likelihood"""


def environment(where: Path) -> Path:
    """The Python of Picasso's virtual environment, which is made where there is none."""
    python = where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        print(f"installing picassosr into {where}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    if subprocess.run(
        [str(python), "-P", "-c", "import picasso"], capture_output=True, check=False
    ).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", "picassosr"], check=True)
    return python


def worker(
    python: Path, movie: Path, two_d: bool, out: Path, settings: list[str], *more: str
) -> dict[str, float]:
    """Run Picasso; seconds by setting."""
    command = [
        str(python),
        "-P",
        str(ROOT / "benchmarks" / "picasso_worker.py"),
        str(movie),
        "-o",
        str(out),
        *more,
    ]
    command += ["--settings", *settings, *(["--two-d"] if two_d else [])]
    # its calibration shows a figure, which needs no screen
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "Agg"}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"Picasso failed:\n{done.stderr[-2000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def picasso_tables(file: Path, pixel_nm: float) -> dict[str, EmitterSet]:
    """Picasso's molecules, by least gradient and share kept, in decode's coordinates; z with either
    sign."""
    columns = dict(np.load(file))
    quality = -columns["d_zcalib"] if "d_zcalib" in columns else columns["log_likelihood"]
    quality = np.nan_to_num(quality, nan=-np.inf)
    z = columns.get("z", np.zeros_like(columns["x"]))
    # Picasso's x and y count from the centre of the first pixel
    xyz = np.stack([(columns["x"] + 0.5) * pixel_nm, (columns["y"] + 0.5) * pixel_nm, z], 1)
    tables = {}
    for gradient in GRADIENTS:
        above = (columns["net_gradient"] >= gradient) & np.isfinite(xyz).all(1)
        for kept in KEPT:
            rows = above & (quality >= np.quantile(quality[above], 1 - kept))
            for sign in (-1.0, 1.0) if "z" in columns else (1.0,):
                tables[
                    f"net gradient {gradient:.0f}, {100 * kept:.0f} % kept, z times {sign:+.0f}"
                ] = EmitterSet(
                    frame=torch.from_numpy(columns["frame"][rows].astype(np.int64)),
                    xyz=torch.from_numpy(xyz[rows] * [1.0, 1.0, sign]),
                    photons=torch.from_numpy(columns["photons"][rows]),
                )
    return tables


def row(name: str, result: Score, two_d: bool, seconds: float) -> str:
    """A line of the table."""
    efficiency = result.efficiency_lateral if two_d else result.efficiency_3d
    axial = "     -" if two_d else f"{result.rmse_axial_nm:6.1f}"
    shift = " ".join(f"{s:+.0f}" for s in result.shift_nm)
    return (
        f"{name:24}  {result.jaccard:7.3f}  {result.recall:6.3f}  {result.precision:9.3f}  "
        f"{result.rmse_lateral_nm:11.1f}  {axial:>9}  {efficiency:10.1f}  {seconds:7.1f}  {shift}"
    )


def pupil_of_beads(movie: Path, step_nm: float, camera: CameraFile, out: Path) -> PSFFile:
    """The pupil on which a model for many PSFs is conditioned, calibrated as a user would."""
    values = {f.name: getattr(camera.camera, f.name) for f in fields(camera.camera)}
    (out / "camera.yaml").write_text(
        yaml.safe_dump(values | {"pixel_size_nm": camera.pixel_size_nm})
    )
    command = [
        sys.executable,
        "-m",
        "decode",
        "calibrate",
        "psf",
        str(movie / "beads.tif"),
        "--model",
        "pupil",
    ]
    command += [
        "--camera",
        str(out / "camera.yaml"),
        "--z-step",
        str(step_nm),
        "-o",
        str(out / "psf.h5"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_psf(out / "psf.h5")


def compare(
    movie: Path,
    python: Path,
    models: dict[str, Localizer],
    psf: PSFFile | None,
    polish: bool,
    out: Path,
) -> None:
    """Print the table of one movie."""
    two_d = movie.name == "sim_2d"
    known = json.loads((movie / "acquisition.json").read_text())
    pixel_nm = known["pixel_size_nm"]
    camera = Camera(
        baseline=known["baseline"],
        e_per_adu=known["e_per_adu"],
        read_noise_e=known["read_sigma"],
        qe=known["qe"],
        em_gain=known["em_gain"],
        spurious_e=known["spurious"],
    )
    file = CameraFile(camera=camera, pixel_size_nm=pixel_nm)
    truth = read_table(movie / "activations.csv")
    rules: dict[str, Any] = {"two_d": two_d, "min_photons": 300.0, "remove_shift": True}

    worker(python, movie, two_d, out, SETTINGS[two_d])
    tried = {}
    for setting in SETTINGS[two_d]:
        for choice, table in picasso_tables(
            out / f"{setting.replace(':', '-')}.npz", pixel_nm
        ).items():
            tried[setting, choice] = score(
                truth, table, field_nm=(64 * pixel_nm, 64 * pixel_nm), **rules
            )

    def efficiency(key: tuple[str, str]) -> float:
        return tried[key].efficiency_lateral if two_d else tried[key].efficiency_3d

    best = max(tried, key=efficiency)
    setting, choice = best
    gradient = choice.split(",")[0].removeprefix("net gradient ")
    seconds = worker(
        python, movie, two_d, out, [setting], "--gradient", gradient, "--repeats", "2"
    )[setting]
    print(f"\n{movie.name}: Picasso's best of {len(tried)} is {setting}, {choice}")
    print(
        f"{'program':24}  Jaccard  recall  precision  lateral, nm  axial, nm  efficiency  seconds  "
        "offset, nm"
    )
    print(row("Picasso", tried[best], two_d, seconds))
    for name, model in models.items():
        if model.network.axial is two_d:
            continue
        pupil = None
        if model.network.axial and model.context:
            pupil = psf or pupil_of_beads(movie, known["bead_z_step_nm"], file, out)
        start = time.perf_counter()
        localize_file(
            movie / "frames.tif",
            model,
            out,
            camera=file,
            psf=pupil,
            formats=("csv",),
            device="cpu",
            polish=polish,
        )
        spent = time.perf_counter() - start
        found = replace(read_table(out / "frames.csv"), metadata={})
        print(
            row(
                name,
                score(truth, found, field_nm=(64 * pixel_nm, 64 * pixel_nm), **rules),
                two_d,
                spent,
            )
        )
    if not any(model.network.axial is not two_d for model in models.values()):
        print(f"no model for {'2D' if two_d else '3D'} was named: --model PATH")


def main() -> None:
    parser = argparse.ArgumentParser()
    add_data(parser)
    parser.add_argument("--movie", nargs="+", default=["sim_2d", "sim_astigmatic"])
    parser.add_argument(
        "--model", nargs="+", default=["gaussian-2d"], help="names or files; each has its movies"
    )
    parser.add_argument(
        "--psf", type=Path, help="for models conditioned on a PSF; default: from the beads"
    )
    parser.add_argument(
        "--polish", action="store_true", help="refine our molecules by the likelihood of the frames"
    )
    parser.add_argument(
        "--venv",
        type=Path,
        default=Path(os.environ.get("PICASSO_VENV", ROOT / "build" / "picasso-venv")),
    )
    arguments = parser.parse_args()
    movies = [folder(arguments.data, name) for name in arguments.movie]
    models = {Path(name).stem: load_model(name) for name in arguments.model}
    psf = None if arguments.psf is None else read_psf(arguments.psf)
    python = environment(arguments.venv)
    for movie in movies:
        with tempfile.TemporaryDirectory() as out:
            compare(movie, python, models, psf, arguments.polish, Path(out))


if __name__ == "__main__":
    main()
