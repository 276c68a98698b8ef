"""Make the README's picture: frames of the sample movie, their sum, and the molecules found in it.

python docs/make_images.py [--device auto]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from decode.io.cameras import read_camera
from decode.io.movies import open_movie
from decode.verbs.localize import localize_file

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_data"
SIDE = 640


def grey(frame: np.ndarray, gamma: float = 0.7) -> Image.Image:  # type: ignore[type-arg]
    """A frame as a picture, enlarged."""
    low, high = np.percentile(frame, (1, 99.9))
    levels = (255 * np.clip((frame - low) / (high - low), 0, 1) ** gamma).astype(np.uint8)
    return Image.fromarray(levels).resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    device = parser.parse_args().device
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
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    sheet.save(ROOT / "docs" / "images" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
