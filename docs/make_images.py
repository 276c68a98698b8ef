"""Make the README's picture (frames of the sample movie, their sum, and the molecules found in it)
and those of docs/render.md.

python docs/make_images.py [--device auto]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from decode import Rendering, read_table, render
from decode.io.cameras import read_camera
from decode.io.movies import open_movie
from decode.verbs.localize import localize_file

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_data"
IMAGES = ROOT / "docs" / "images"
SIDE = 640
REGION = (200.0, 600.0, 6200.0, 4600.0)
DEPTH = Rendering(color="z", region_nm=REGION, pixel_nm=8.0)
PICTURES = {
    "depth": DEPTH,
    "side": replace(DEPTH, view="xz"),
    "slices": replace(DEPTH, color="density", slices_nm=350.0, pixel_nm=16.0),
}


def grey(frame: np.ndarray, gamma: float = 0.7) -> Image.Image:  # type: ignore[type-arg]
    """A frame as a picture, enlarged."""
    low, high = np.percentile(frame, (1, 99.9))
    levels = (255 * np.clip((frame - low) / (high - low), 0, 1) ** gamma).astype(np.uint8)
    return Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB")


def demo(device: str) -> None:
    camera = read_camera(SAMPLE / "camera.yaml")
    with open_movie(SAMPLE / "blinking_2d.tif") as movie:
        frames = movie.read(0, len(movie)).astype(np.float64)
    with tempfile.TemporaryDirectory() as folder:
        localize_file(
            SAMPLE / "blinking_2d.tif", "gaussian-2d", folder, camera=camera, device=device
        )
        picture = Image.open(Path(folder) / "blinking_2d.png").convert("RGB").resize((SIDE, SIDE))
    sheet = Image.new("RGB", (3 * SIDE + 16, SIDE), "white")
    for i, panel in enumerate((grey(frames[100]), grey(frames.mean(0), 1.0), picture)):
        sheet.paste(panel, (i * (SIDE + 8), 0))
    sheet.save(IMAGES / "demo.png", optimize=True)


def pictures() -> None:
    """What `decode render` makes of the true molecules of the sample movie in 3D."""
    truth = read_table(SAMPLE / "blinking_3d_truth.csv")
    molecules = replace(truth, xyz_sigma=torch.full((len(truth), 3), 12.0))
    for name, rendering in PICTURES.items():
        render(molecules, IMAGES / "render" / f"{name}.png", rendering)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    (IMAGES / "render").mkdir(parents=True, exist_ok=True)
    pictures()
    demo(parser.parse_args().device)


if __name__ == "__main__":
    main()
