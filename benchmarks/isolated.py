"""Isolated molecules: error over the Cramer-Rao bound, and error over the stated sigma.

    python benchmarks/isolated.py [--model gaussian-2d] [--n 1000]

Every molecule shines in one frame only, so neither network nor bound has more than that frame to go by.
"""

from __future__ import annotations

import argparse
import math

from decode.models import load_model
from decode.optics.camera import Camera
from decode.validation import localize_isolated

CAMERAS = {
    "EMCCD": Camera(baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gaussian-2d")
    parser.add_argument("--n", type=int, default=500, help="molecules per row")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    print("camera  sigma_px  photons  background  found  rmse_nm  bound_nm  ratio  error/sigma x, y  photons/true")
    for name, camera in CAMERAS.items():
        for sigma in (0.9, 1.3, 1.8):
            squares, bounds = [], []
            for photons in (1000.0, 2000.0, 5000.0, 15000.0):
                for background in (5.0, 30.0, 150.0):
                    r = localize_isolated(
                        model, camera, sigma_px=sigma, photons=photons, background=background, n=arguments.n
                    )
                    squares.append(r.rmse_nm**2)
                    bounds.append(r.bound_nm**2)
                    print(
                        f"{name}  {sigma:8.1f}  {photons:7.0f}  {background:10.0f}  {r.found:5.3f}  {r.rmse_nm:7.2f}"
                        f"  {r.bound_nm:8.2f}  {r.rmse_nm / r.bound_nm:5.3f}  {r.error_over_sigma[0]:7.3f}"
                        f" {r.error_over_sigma[1]:7.3f}  {r.photons_ratio:8.3f}"
                    )
            print(
                f"{name}  sigma {sigma}: lateral RMSE over bound, all rows: {math.sqrt(sum(squares) / sum(bounds)):.3f}"
            )


if __name__ == "__main__":
    main()
