"""Localizes a movie with Picasso, by Picasso's own Python; `benchmarks/picasso.py` runs it.

    build/picasso-venv/bin/python -P benchmarks/picasso_worker.py FOLDER --settings gaussmle:9 -o
    tables

FOLDER holds frames.tif, beads.tif and acquisition.json.  -P keeps this folder, where a file is
called picasso.py, off the import path.  Writes METHOD-BOX.npz for each pair, and prints the seconds
of the last localizing of each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from picasso import io, localize, spline, zfit  # type: ignore[attr-defined]

BEAD_GRADIENT = 5000.0
"""net gradient from which a spot of the bead stack is a bead"""


def calibration(
    folder: Path, camera: dict[str, float], step_nm: float, method: str, box: int
) -> dict[str, Any]:
    """Picasso's own calibration from the beads, as keyword arguments of its `localize`."""
    beads, info = io.load_movie(str(folder / "beads.tif"))
    if method.startswith("spline"):
        made = spline.calibrate_spline(
            beads,
            info,
            camera,
            box,
            BEAD_GRADIENT,
            step_nm,
            model="spline-3d",
            magnification_factor=1.0,
        )
        return {"spline_calibration": made}
    found, _ = localize.localize(
        beads,
        camera_info=camera,
        identification_parameters={"Box Size": box, "Min. Net Gradient": BEAD_GRADIENT},
        movie_info=info,
        fitting_method=method,
    )
    return {"calibration_3d": zfit.calibrate_z(found, info, step_nm, 1.0)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", nargs="+", metavar="METHOD:BOX", required=True)
    parser.add_argument(
        "--gradient", type=float, default=500.0, help="least net gradient of a spot"
    )
    parser.add_argument("--two-d", action="store_true")
    parser.add_argument(
        "--repeats", type=int, default=1, help="a second time, everything is compiled"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    known = json.loads((arguments.folder / "acquisition.json").read_text())
    camera = {
        "Baseline": known["baseline"],
        "Sensitivity": known["e_per_adu"],
        "Gain": known["em_gain"],
        "Qe": known["qe"],
        "Pixelsize": known["pixel_size_nm"],
    }
    movie, info = io.load_movie(str(arguments.folder / "frames.tif"))
    seconds = {}
    for setting in arguments.settings:
        method, box = setting.split(":")
        extra: dict[str, Any] = {}
        if not arguments.two_d:
            extra = calibration(arguments.folder, camera, known["bead_z_step_nm"], method, int(box))
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            found, _ = localize.localize(
                movie,
                camera_info=camera,
                identification_parameters={
                    "Box Size": int(box),
                    "Min. Net Gradient": arguments.gradient,
                },
                movie_info=info,
                fitting_method=method,
                **extra,
            )
            seconds[setting] = time.perf_counter() - start
        columns: dict[str, Any] = {name: np.asarray(found[name], float) for name in found.columns}
        np.savez(arguments.out / f"{method}-{box}.npz", **columns)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
