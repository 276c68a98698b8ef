"""Comparison of a movie with one simulated from its estimate: frames, histograms and spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.atomic import atomic
from decode.defects import Counts, screened
from decode.estimation.frames import gaussian_kernel, read_frames, shape_of
from decode.estimation.scene import SceneEstimate
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

__all__ = ["Comparison", "compare", "save_comparison"]

Array = npt.NDArray[np.float64]

SIDE_PX = 128
"""side of the middle part of a large field, which is compared, pixels"""
FRAMES = 200
"""largest number of frames compared, spread over the movie"""
RIM_PX = 5
"""width of the border that is faded out before the spectrum is computed, pixels"""
SHOWN = 3
"""frames of each movie in the picture"""
NAMES = ("real", "simulated")


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Frames of both movies, in photons, with their histograms and spectra."""

    real: Tensor
    """(frame, y, x) photons"""
    simulated: Tensor
    """(frame, y, x) photons"""
    pixel_size_nm: float
    edges: Array
    """(bin + 1,) photons"""
    histograms: Array
    """(2, bin) fraction of pixels, real and simulated"""
    frequencies: Array
    """(ring,) 1 / um"""
    spectra: Array
    """(2, ring) photons^2, radially averaged power of the changes from frame to frame, real and
    simulated"""

    @property
    def histogram_overlap(self) -> float:
        """Overlap of both histograms, a share of the pixels; 1: they are equal."""
        return float(self.histograms.min(0).sum())

    @property
    def spectrum_difference(self) -> float:
        """Root mean square of the logarithm of the ratio of both spectra; 0: they are equal, 0.1:
        they differ by 10 %."""
        return float(np.sqrt(np.mean(np.log(self.spectra[0] / self.spectra[1]) ** 2)))

    def __str__(self) -> str:
        return (
            f"histograms of photons overlap by {self.histogram_overlap:.1%}, "
            f"power spectra differ by {self.spectrum_difference:.1%}"
        )


@torch.no_grad()
def compare(
    movie: Counts,
    camera: Camera,
    psf: PSF,
    estimate: SceneEstimate,
    *,
    seed: int = 0,
) -> Comparison:
    """Simulate a movie from its estimate and compare both.

    Args:
        movie: (frame, y, x) ADU.
        camera: the movie's; its maps cover the movie's frames.
        psf: the PSF the scene was estimated with.
        estimate: the estimate of `estimate_scene`.
        seed: seed of the simulation.
    """
    shape_of(movie)
    movie, camera, _ = screened(movie, camera)
    total, height, width = shape_of(movie)
    rows, columns = (_middle(side) for side in (height, width))
    chosen = np.unique(np.linspace(0, total - 1, min(total, FRAMES)).round().astype(int))
    camera = camera.crop(rows, columns)
    real = torch.cat([read_frames(movie, int(i), int(i) + 1, rows, columns) for i in chosen])
    shape = (real.shape[1], real.shape[2])
    rng = torch.Generator().manual_seed(seed)
    adu = camera.sample(_light(psf, estimate, len(chosen), shape, rng), rng)
    seen = [camera.without_bad(camera.to_photons(counts)).double() for counts in (real, adu)]
    light = torch.stack(seen)

    # one bin for a hundredth of the range that all but the brightest pixels span, the last for
    # those
    low, high = np.quantile(light[0].numpy(), [0.0005, 0.999])
    edges = np.concatenate([[-np.inf], np.linspace(low, high, 100), [np.inf]])
    counts = np.stack([np.histogram(part.numpy(), edges)[0] / part.numel() for part in light])
    frequencies, spectra = _spectra(light)
    return Comparison(
        real=light[0],
        simulated=light[1],
        pixel_size_nm=psf.pixel_size_nm,
        edges=edges,
        histograms=counts,
        frequencies=frequencies / psf.pixel_size_nm * 1e3,
        spectra=spectra,
    )


def _middle(side: int) -> slice:
    """The middle of a side, up to `SIDE_PX`."""
    compared = min(side, SIDE_PX)
    return slice((side - compared) // 2, (side + compared) // 2)


def _light(
    psf: PSF,
    estimate: SceneEstimate,
    n_frames: int,
    shape: tuple[int, int],
    rng: torch.Generator,
) -> Tensor:
    """(frame, y, x) expected photons."""
    scene = estimate.scene()
    pixel = psf.pixel_size_nm
    emitters = scene.sample_emitters(1, n_frames, shape, pixel, rng)
    parameters = None
    if estimate.psf_sigma_nm is not None:
        parameters = torch.full((len(emitters), 1), estimate.psf_sigma_nm.value)
    spots = render(
        psf,
        frame=emitters.frame,
        xyz=emitters.xyz,
        photons=emitters.photons,
        n_frames=n_frames,
        shape=shape,
        parameters=parameters,
    )
    if estimate.psf_blur_nm is not None and estimate.psf_blur_nm.value > 0.1 * pixel:
        kernel = gaussian_kernel(estimate.psf_blur_nm.value / pixel)
        half = len(kernel) // 2
        padded = F.pad(spots[:, None], (half, half, half, half))
        along_x = F.conv2d(padded, kernel[None, None, None])
        spots = F.conv2d(along_x, kernel[None, None, :, None])[:, 0]
    # frames are compared that lie far apart in the movie: the background is its mean over time
    background = scene.sample_background(1, 1, shape, rng)[0]
    return spots + background


def _spectra(light: Tensor) -> tuple[Array, Array]:
    """Frequencies in 1 / px, and power (2, ring) of (2, frame, y, x).

    The mean over time is subtracted, and with it structures and uneven background, which no
    estimate simulates; what remains is the blinking of single molecules, wherever they lie, and
    noise.  The window fades out only the rim, where spots are cut, so that structures elsewhere
    keep their weight."""
    light = light - light.mean(1, keepdim=True)
    height, width = light.shape[2:]
    window = torch.outer(_faded(height), _faded(width))
    spectrum = torch.fft.rfft2(light * window / window.square().sum().sqrt())
    power = spectrum.abs().square().mean(1)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    rings = min(height, width) // 2
    ring = (frequency * 2 * rings).round().long().clamp_max(rings + 1).flatten()
    sums = torch.zeros(2, rings + 2, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    mean = sums / torch.bincount(ring, minlength=rings + 2)
    # a lamp that flickers is in the first ring
    return np.arange(2, rings + 1) / (2 * rings), mean[:, 2 : rings + 1].numpy()


def _faded(side: int) -> Tensor:
    """(side,) weights: 1, falling to 0 as a cosine over a rim of `RIM_PX`."""
    from_end = torch.minimum(torch.arange(side) + 0.5, side - 0.5 - torch.arange(side))
    return torch.sin(math.pi / 2 * (from_end.double() / RIM_PX).clamp_max(1)).square()


def save_comparison(comparison: Comparison, path: Path | str) -> None:
    """Write a PNG: frames of both on one grey scale, and their histograms and power spectra.

    Raises:
        OSError: if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2 * SHOWN)
    _draw_frames(figure, grid, comparison)
    _draw_histograms(figure.add_subplot(grid[2, :SHOWN]), comparison)
    _draw_spectra(figure.add_subplot(grid[2, SHOWN:]), comparison)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_frames(figure: Figure, grid: GridSpec, comparison: Comparison) -> None:
    """Frames of both on one grey scale, a row each."""
    real = comparison.real
    black, white = (float(v) for v in np.quantile(real.numpy(), [0.01, 0.998]))
    shown = np.linspace(0, len(real) - 1, SHOWN).round().astype(int)
    height, width = (side * comparison.pixel_size_nm / 1e3 for side in real.shape[1:])
    axes = []
    for row, frames in enumerate((real, comparison.simulated)):
        for column, i in enumerate(shown):
            ax = figure.add_subplot(grid[row, 2 * column : 2 * column + 2])
            image = ax.imshow(
                frames[i].numpy(),
                cmap="gray",
                vmin=black,
                vmax=white,
                extent=(0, width, height, 0),
            )
            ax.set_title(NAMES[row], fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
            axes.append(ax)
    axes[SHOWN].set_xlabel(f"{width:.3g} µm wide")
    figure.colorbar(image, ax=axes, label="photons", shrink=0.6)


def _draw_histograms(ax: Axes, comparison: Comparison) -> None:
    edges = comparison.edges
    middles = (edges[1:-2] + edges[2:-1]) / 2
    for name, histogram in zip(NAMES, comparison.histograms, strict=True):
        ax.step(middles, np.clip(histogram[1:-1], 1e-7, None), where="mid", label=name)
    ax.set(xlabel="photons in a pixel", ylabel="fraction of pixels", yscale="log")
    ax.set_title(f"overlap {comparison.histogram_overlap:.1%}", fontsize=10)
    ax.legend()


def _draw_spectra(ax: Axes, comparison: Comparison) -> None:
    for name, spectrum in zip(NAMES, comparison.spectra, strict=True):
        ax.plot(comparison.frequencies, spectrum, label=name)
    ax.set(xlabel="spatial frequency, 1/µm", ylabel="power, photons²", yscale="log")
    ax.set_title(f"difference {comparison.spectrum_difference:.1%}", fontsize=10)
    ax.legend()
