"""Real movies: molecules a frame, molecules on hot pixels, and pictures of molecules over the raw
frames.

    python benchmarks/real_movies.py [DATA] [-o docs/images]

DATA holds `storm_scmos_real` (frames and camera maps) and `storm_microtubules_real`, both by the
Zhuang laboratory (github.com/ZhuangLab/storm-analysis, MIT licence).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from data import add_data, folder
from PIL import Image, ImageDraw

from decode.acquisition import complete_acquisition
from decode.emitters import EmitterSet
from decode.io.movies import open_movie
from decode.models import load_model
from decode.optics.camera import Camera
from decode.verbs.sweep import sweep

Frame = npt.NDArray[np.float64]


def overlay(
    frames: Sequence[Frame], molecules: Sequence[EmitterSet], pixel_nm: float, zoom: int
) -> Image.Image:
    """Raw frames, and below them the same with a ring around every molecule."""
    plain, ringed = [], []
    for frame, found in zip(frames, molecules, strict=True):
        low, high = np.percentile(frame, (1, 99.8))
        grey = (255 * np.clip((frame - low) / (high - low), 0, 1) ** 0.7).astype(np.uint8)
        image = Image.fromarray(grey).resize(
            (grey.shape[1] * zoom, grey.shape[0] * zoom), Image.Resampling.NEAREST
        )
        image = image.convert("RGB")
        plain.append(image.copy())
        draw = ImageDraw.Draw(image)
        radius = 1.3 * zoom
        for x, y in (found.xyz[:, :2] / pixel_nm * zoom).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(255, 170, 0))
            draw.point((x, y), fill=(0, 255, 255))
        ringed.append(image)
    width, height = plain[0].size
    gap = 6
    sheet = Image.new("RGB", (len(plain) * (width + gap) - gap, 2 * height + gap), "white")
    for i, (above, below) in enumerate(zip(plain, ringed, strict=True)):
        sheet.paste(above, (i * (width + gap), 0))
        sheet.paste(below, (i * (width + gap), height + gap))
    return sheet


def run(
    path: Path,
    camera: Camera | None,
    pixel_nm: float,
    frames: Sequence[int],
    region: tuple[slice, slice],
    zoom: int,
) -> tuple[EmitterSet, Image.Image, float]:
    """All molecules of a movie, the picture of some of its frames, and the PSF's width in
    pixels."""
    with open_movie(path) as movie:
        known = complete_acquisition(movie, camera=camera, pixel_size_nm=pixel_nm)
        print(
            f"{path.parent.name}: PSF sigma {known.psf_sigma_nm / pixel_nm:.2f} px",
            *known.estimates,
            sep="\n  ",
        )
        assert known.psf_sigma_nm is not None
        context = {"psf_sigma_px": known.psf_sigma_nm / pixel_nm}
        chunks = sweep(
            movie, load_model("gaussian-2d"), known.camera, pixel_size_nm=pixel_nm, context=context
        )
        found = EmitterSet.cat(chunk.molecules for chunk in chunks)
        raw = [movie.read(i, i + 1)[0].astype(np.float64)[region] for i in frames]
        print(f"  {len(found) / len(movie):.1f} molecules a frame")
    origin = torch.tensor([region[1].start, region[0].start]) * pixel_nm
    shown = []
    for i in frames:
        of = found[found.frame == i]
        inside = (
            (of.xyz[:, :2] >= origin)
            & (of.xyz[:, :2] < origin + torch.tensor(raw[0].shape[::-1]) * pixel_nm)
        ).all(1)
        of = of[inside]
        shown.append(
            EmitterSet(
                frame=of.frame, xyz=of.xyz - torch.cat([origin, torch.zeros(1)]), photons=of.photons
            )
        )
    return found, overlay(raw, shown, pixel_nm, zoom), known.psf_sigma_nm / pixel_nm


def seen_beside(
    path: Path, camera: Camera, molecules: EmitterSet, hot: torch.Tensor, sigma_px: float
) -> list[float]:
    """Light of each molecule in the pixels around it, without hot ones, in standard deviations.

    A Gaussian at the molecule's place and a flat background are fitted by weighted least squares to
    7 x 7 pixels.
    """
    result = []
    with open_movie(path) as movie:
        light = camera.to_photons(torch.from_numpy(movie.read(0, len(movie)).astype(np.float32)))
    for frame, (x, y) in zip(
        molecules.frame.tolist(), (molecules.xyz[:, :2] / 160).tolist(), strict=True
    ):
        rows, columns = (slice(max(0, int(c) - 3), int(c) + 4) for c in (y, x))
        use = ~hot[rows, columns]
        at_y, at_x = (torch.arange(s.start, min(s.stop, 256)) + 0.5 for s in (rows, columns))
        spot = torch.exp(-((at_y[:, None] - y) ** 2 + (at_x - x) ** 2) / (2 * sigma_px**2))[use]
        values = light[frame, rows, columns][use].double()
        variance = (
            values.clamp_min(0) + camera.noise_floor.expand(256, 256)[rows, columns][use]
        ).double()
        design = torch.stack([spot.double(), torch.ones_like(values)], 1)
        normal = design.T @ (design / variance[:, None])
        amplitude = torch.linalg.solve(normal, design.T @ (values / variance))[0]
        result.append(float(amplitude / torch.linalg.inv(normal)[0, 0].sqrt()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    add_data(parser)
    parser.add_argument(
        "--out", "-o", type=Path, default=Path(__file__).parents[1] / "docs" / "images"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    scmos, microtubules = (
        folder(arguments.data, f"storm_{name}_real") for name in ("scmos", "microtubules")
    )
    maps = {name: tifffile.imread(scmos / f"camera_{name}.tif").astype(np.float32) for name in
            ("offset_adu", "gain_adu_per_electron", "variance_adu2")}  # fmt: skip
    gain = torch.from_numpy(maps["gain_adu_per_electron"])
    variance = torch.from_numpy(maps["variance_adu2"])
    camera = Camera(
        baseline=torch.from_numpy(maps["offset_adu"]),
        e_per_adu=1 / gain,
        read_noise_e=variance.clamp_min(0).sqrt() / gain,
    )
    found, picture, width_px = run(
        scmos / "frames.tif", camera, 160.0, (0, 5), (slice(60, 188), slice(60, 188)), 5
    )
    picture.save(arguments.out / "storm_scmos_real.png", optimize=True)
    hot = variance > torch.sort(variance.flatten(), descending=True).values[417]
    column, row = (found.xyz[:, :2] / 160).long().clamp(0, 255).unbind(1)
    on_hot = hot[row, column]
    by_chance = len(found) * float(hot.float().mean())
    print(
        f"  on the {int(hot.sum())} noisiest pixels: {int(on_hot.sum())} molecules; "
        f"{by_chance:.1f} by chance"
    )
    places, times = torch.unique((row * 256 + column)[on_hot], return_counts=True)
    print(
        f"  frames in which each such pixel holds one: {times.tolist()} of 11 ({len(places)} "
        "pixels)"
    )
    evidence = seen_beside(scmos / "frames.tif", camera, found[on_hot], hot, width_px)
    print(
        "  their light in the pixels around, hot ones left out, over its error: "
        f"{[round(e, 1) for e in evidence]}"
    )

    _, picture, _ = run(
        microtubules / "frames.tif", None, 160.0, (20, 100, 200, 300, 400, 500),
        (slice(0, 16), slice(0, 16)), 20,
    )  # fmt: skip
    picture.save(arguments.out / "storm_microtubules_real.png", optimize=True)


if __name__ == "__main__":
    main()
