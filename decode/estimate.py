"""Rough estimates, from the movie alone, of what a user did not give: the PSF's width and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from decode.io.stacks import Movie
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF

__all__ = ["Estimate", "estimate_camera", "estimate_psf_sigma"]

LARGEST_FIELD_PX = 512
"""of larger movies the middle is looked at"""
FEWEST_MOLECULES = 20
"""a mode of fewer widths is not worth its name"""
MODEL_ERROR = 0.02
"""standard deviation of what noise does not explain, as neighbours that were not seen: spread of the relative error
of the width over simulated movies (up to one molecule a um^2) once its share of noise is taken away"""
TYPICAL_READ_NOISE_E = 1.5
"""of an sCMOS camera, electrons"""
GAIN_ERROR = 0.06
"""as `MODEL_ERROR`, of the gain"""
LARGEST_SCMOS_GAIN = 5.0
"""ADU per electron; a steeper growth of the noise comes from an electron-multiplying register"""


@final
@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a movie."""

    value: float
    low: float
    """lower end of the interval that holds the truth with 95 % probability"""
    high: float
    """upper end"""
    n: int
    """number of molecules, or of pixels, it rests on"""

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@torch.no_grad()
def estimate_psf_sigma(
    movie: Movie | Tensor | npt.NDArray[Any],
    camera: Camera,
    pixel_size_nm: float,
    *,
    n_frames: int | None = None,
    max_molecules: int = 1000,
) -> Estimate:
    """In-focus width of a round Gaussian PSF, from a raw movie of blinking molecules.

    Bright spots without a visible neighbour are fitted by a Gaussian integrated over pixels.  Neighbours that were not
    seen and defocus can only widen a spot, so the mode of the fitted widths is taken and not their mean.

    Args:
        movie: (frame, y, x) ADU.
        camera: gives light and noise; its maps cover the movie's frames.
        pixel_size_nm: side of a pixel in object space.
        n_frames: number of frames to look at, spread over the movie; None takes 100, and more of a small field.
        max_molecules: largest number of spots to fit.

    Returns:
        Standard deviation of the Gaussian in nm.

    Raises:
        ValueError: in one sentence, if too few molecules are bright and alone enough.
    """
    shape, total = _shape(movie), len(movie)
    rows, columns = (_middle(side) for side in shape[1:])
    pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
    n_frames = min(total, n_frames or max(100, 2**22 // pixels))
    chosen = np.linspace(0, total - 1, n_frames).round().astype(int)
    camera = camera.crop(rows, columns)
    light = torch.stack([camera.to_photons(_read(movie, i, i + 1, rows, columns)[0]).float() for i in chosen])
    # what is always there, in the darkest tenth of the frames, where molecules shine least; scaled to the light of each
    # frame, which bleaches (a photon keeps the ratio of dark frames finite)
    structure = light.kthvalue(min(n_frames, max(3, n_frames // 10)), 0).values.clamp_min(0) * (n_frames >= 5)
    level = light.flatten(1).median(1).values.clamp_min(0) + 1
    still = structure * (level / (structure.median() + 1))[:, None, None]

    sigma_px = 1.3
    for n_most in (min(300, max_molecules), max_molecules):
        half = math.ceil(2.5 * sigma_px)
        spots = _isolated_spots(light - still, still, camera, sigma_px, clearance=half + math.ceil(sigma_px))
        spots = spots[torch.linspace(0, len(spots) - 1, min(len(spots), n_most)).round().long()]
        widths = _fit_widths(light, still, camera, spots, sigma_px, half) if len(spots) else torch.empty(0, 2)
        if len(widths) < FEWEST_MOLECULES:
            raise ValueError(
                f"only {len(widths)} molecules are bright and alone enough to measure the PSF's width "
                f"({FEWEST_MOLECULES} are needed); give --psf-sigma"
            )
        sigma_px, spread = _mode(widths)
    margin = math.exp(1.96 * math.hypot(spread, MODEL_ERROR))
    value = sigma_px * pixel_size_nm
    return Estimate(value, value / margin, value * margin, len(widths))


def _shape(movie: Movie | Tensor | npt.NDArray[Any]) -> tuple[int, int, int]:
    shape = tuple(movie.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"a movie is (frame, y, x) and not empty, this one has shape {shape}")
    return shape[0], shape[1], shape[2]


def _middle(side: int) -> slice:
    start = max(0, (side - LARGEST_FIELD_PX) // 2)
    return slice(start, min(side, start + LARGEST_FIELD_PX))


def _read(movie: Movie | Tensor | npt.NDArray[Any], start: int, stop: int, rows: slice, columns: slice) -> Tensor:
    """(stop - start, y, x) float64 ADU."""
    frames = movie.read(start, stop) if isinstance(movie, Movie) else movie[start:stop]
    return torch.as_tensor(np.asarray(frames)[:, rows, columns].astype(np.float64))


def _map(value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    """A camera's number or (..., y, x) map as a (y, x) map."""
    value = torch.as_tensor(value, dtype=torch.float32)
    return value.reshape(value.shape[-2:]).expand(shape)


def _isolated_spots(light: Tensor, still: Tensor, camera: Camera, sigma_px: float, clearance: int) -> Tensor:
    """Pixels of bright local maxima that have no other within `clearance`.

    Args:
        light: (frame, y, x) photons without what is always there.
        still: (frame, y, x) what was taken away; it made noise.

    Returns:
        (n, 3) frame, y, x.
    """
    shape = light.shape[1:]
    floor, qe = _map(camera.noise_floor, shape), _map(camera.qe, shape)
    narrow, wide = _gaussian_kernel(sigma_px), _gaussian_kernel(3 * sigma_px)
    border = math.ceil(sigma_px) + 1
    found = []
    for i, (frame, background) in enumerate(zip(light[:, None], still[:, None], strict=True)):
        mean = (_blur(frame, wide) + background).clamp_min(0)
        weight = 1 / (camera.excess_factor * mean / qe + floor + 1e-3)
        # weighted by 1 / variance, a hot pixel counts little: the best a linear filter can do
        norm = _blur(weight, narrow)
        contrast = _blur(weight * frame, narrow) / norm - _blur(weight * frame, wide) / _blur(weight, wide)
        snr = contrast * norm / _blur(weight, narrow**2).sqrt()
        peak = (snr == F.max_pool2d(snr, 3, 1, 1)) & (snr > 4)
        window = 2 * clearance + 1
        alone = F.avg_pool2d(peak.float(), window, 1, clearance) * window**2 < 1.5
        use = (peak & alone & (snr > 8))[0]
        use[:border] = use[-border:] = use[:, :border] = use[:, -border:] = False
        y, x = use.nonzero(as_tuple=True)
        found.append(torch.stack([torch.full_like(y, i), y, x], 1))
    return torch.cat(found)


def _gaussian_kernel(sigma_px: float) -> Tensor:
    x = torch.arange(-math.ceil(3 * sigma_px), math.ceil(3 * sigma_px) + 1)
    return torch.softmax(-(x**2) / (2 * sigma_px**2), 0)


def _blur(image: Tensor, kernel: Tensor) -> Tensor:
    """(1, y, x) convolved with the same kernel along both axes; the border's pixels continue beyond it."""
    half = len(kernel) // 2
    padded = F.pad(image[None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0]


def _fit_widths(
    light: Tensor, still: Tensor, camera: Camera, spots: Tensor, sigma_px: float, half: int, n_steps: int = 20
) -> Tensor:
    """Fit x, y, log sigma, photons and background of single spots, and keep the good fits.

    Fisher scoring of the quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974): the score depends on the noise only
    through its variance, so an EMCCD's excess noise leaves it unbiased, and for a camera without read noise it is
    Poisson maximum likelihood.

    Args:
        light, still: (frame, y, x) photons; what is always there is part of `light`.
        spots: (n, 3) frame, y, x of the patches' middles.
        sigma_px: where the fit starts.
        half: patches are 2 half + 1 wide.

    Returns:
        (m, 2) logarithm of sigma in pixels, and its standard deviation.
    """
    shape = light.shape[1:]
    steps = torch.arange(-half, half + 1)
    y, x = spots[:, 1, None] + steps, spots[:, 2, None] + steps
    inside = ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    y, x = y.clamp(0, shape[0] - 1)[:, :, None], x.clamp(0, shape[1] - 1)[:, None, :]
    frame = spots[:, 0, None, None]
    fixed, data = still[frame, y, x].double(), light[frame, y, x].double()
    floor, qe = (_map(value, shape)[y, x].double() for value in (camera.noise_floor, camera.qe))
    psf = GaussianPSF(1.0, pixel_size_nm=1.0, patch_px=2 * half + 1)

    def share(shape_parameters: Tensor) -> Tensor:
        position = F.pad(shape_parameters[:, :2], (0, 1))
        return psf.integrate_pixels(position, shape_parameters[:, 2:].exp())

    residual = data - fixed
    background = residual.flatten(1).quantile(0.25, dim=1)
    photons = ((residual - background[:, None, None]) * inside).sum((1, 2)).clamp_min(50)
    where = torch.tensor([half + 0.5, half + 0.5, math.log(sigma_px)], dtype=torch.float64).expand(len(spots), 3)
    p = torch.cat([where, photons[:, None], background[:, None]], 1)
    longest = torch.tensor([0.5, 0.5, 0.25, torch.inf, torch.inf], dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    for _ in range(n_steps):
        # spots are independent, so one forward-mode pass per axis differentiates all of them
        slopes = [torch.func.jvp(share, (p[:, :3],), (axis.expand(len(p), 3).contiguous(),))[1] for axis in axes]
        fraction = share(p[:, :3])
        bright = p[:, 3, None, None]
        mean = bright * fraction + p[:, 4, None, None] + fixed
        weight = inside / (camera.excess_factor * mean.clamp_min(0.01) / qe + floor + 1e-3)
        slope = torch.stack([*(bright * s for s in slopes), fraction, torch.ones_like(fraction)], 1).flatten(2)
        information = torch.einsum("nik,njk,nk->nij", slope, slope, weight.flatten(1))
        score = torch.einsum("nik,nk->ni", slope, (weight * (data - mean)).flatten(1))
        # correlations are inverted: units of pixels and photons differ by orders of magnitude
        scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
        correlation = information / (scale[:, :, None] * scale[:, None, :]) + 1e-4 * torch.eye(5)
        covariance = torch.linalg.inv(correlation) / (scale[:, :, None] * scale[:, None, :])
        step = torch.einsum("nij,nj->ni", covariance, score).clamp(-longest, longest)
        p = p + step
        p[:, :2] = p[:, :2].clamp(half - 1.5, half + 2.5)
        p[:, 2] = p[:, 2].clamp(math.log(0.3), math.log(half))
        p[:, 3] = p[:, 3].clamp_min(1)
    error = covariance[:, 2, 2].sqrt()
    freedom = inside.sum((1, 2)) - 5
    misfit = (weight * (data - mean) ** 2).sum((1, 2)) / freedom
    # a spot is a molecule if noise explains what is left; where the PSF is no Gaussian or the camera is only roughly
    # known noise explains no spot, and the best fifth is taken
    good = misfit <= (1 + 3 * (2 / freedom).sqrt()).clamp_min(float(misfit.quantile(0.2)))
    settled = (step[:, :3].abs() < 0.02).all(1) & ((p[:, :2] - half - 0.5).abs() < 1.5).all(1)
    keep = good & settled & (error < 0.2) & (p[:, 2] > math.log(0.35)) & (p[:, 2] < math.log(0.8 * half))
    return torch.stack([p[keep, 2], error[keep]], 1)


def _mode(widths: Tensor, n_draws: int = 200) -> tuple[float, float]:
    """Mode of the widths, each blurred by its error, and the standard deviation of its logarithm by bootstrap."""
    log_sigma, error = widths.T
    grid = torch.arange(float(log_sigma.min()), float(log_sigma.max()) + 2e-3, 2e-3, dtype=widths.dtype)
    blur = torch.hypot(error, torch.tensor(0.03))
    density = torch.exp(-(((grid[:, None] - log_sigma) / blur) ** 2) / 2) / blur
    n = len(widths)
    drawn = torch.randint(n, (n_draws, n), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(n_draws, n, dtype=widths.dtype).scatter_add_(1, drawn, torch.ones(n_draws, n).double())
    modes = grid[(density @ counts.T).argmax(0)]
    return float(grid[density.sum(1).argmax()].exp()), float(modes.std())


@torch.no_grad()
def estimate_camera(
    movie: Movie | Tensor | npt.NDArray[Any], *, n_frames: int | None = None
) -> tuple[Camera, tuple[str, ...]]:
    """A rough camera from a movie of blinking molecules: photon transfer (Janesick, Photon Transfer, SPIE, 2007).

    The variance of a steady pixel grows with its mean by the ADU that one electron gives.  It is taken from the
    difference of consecutive frames, in pixels whose neighbours say that no molecule went on or off.

    Offset and read noise cannot be told apart without dark frames: a read noise is assumed and the offset follows.
    An EMCCD cannot be told from a camera of twice the gain: it is described as one without a register, whose noise is
    right and whose photons are half of the true ones.

    Args:
        movie: (frame, y, x) ADU.
        n_frames: number of pairs of frames to look at, spread over the movie; None takes 50, and more of a small field.

    Returns:
        The camera, its photons being photoelectrons (`qe` 1), and a sentence on each thing the user should know.

    Raises:
        ValueError: in one sentence, if the movie's noise does not tell the gain.
    """
    shape = _shape(movie)
    if shape[0] < 2 or min(shape[1:]) < 16:
        raise ValueError("estimating the camera takes at least 2 frames of 16 x 16 pixels; give --camera")
    rows, columns = (_middle(side) for side in shape[1:])
    pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
    n_pairs = min(shape[0] - 1, n_frames or max(50, 2**21 // pixels))
    starts = np.linspace(0, shape[0] - 2, n_pairs).round().astype(int)
    pairs = torch.stack([_read(movie, i, i + 2, rows, columns) for i in starts])
    gain, dark = _photon_transfer(pairs)
    if not gain.low > 0:
        raise ValueError("the movie's noise does not grow with its light and tells no gain; give --camera")

    register = gain.value > LARGEST_SCMOS_GAIN
    read_noise_e = 0.0 if register else TYPICAL_READ_NOISE_E
    # a baseline above the darkest pixels cannot be; below, read noise moves it by read_noise_e^2 * gain
    darkest = float(pairs.mean((0, 1)).quantile(0.01))
    low, value, high = (
        min(darkest, offset + noise**2 * gain.value)
        for offset, noise in ((dark.low, 0.0), (dark.value, read_noise_e), (dark.high, 2 * read_noise_e))
    )
    baseline = Estimate(value, low, high, gain.n)
    read_noise_e = math.sqrt(max(0.0, (value - dark.value) / gain.value))
    notes = [
        f"the camera was estimated from the movie, roughly: {gain} ADU per electron and {baseline} ADU at no light; "
        "photons and uncertainties are as rough",
        f"a read noise of {read_noise_e:.2g} electrons was assumed, and photons are photoelectrons: "
        "a movie does not tell read noise and quantum efficiency",
    ]
    if register:
        notes.append(
            f"{gain.value:.3g} ADU per electron suggest an EMCCD, whose excess noise the movie does not tell from "
            "gain: uncertainties hold, but photons come out at about half their number; give --camera"
        )
    return Camera(baseline=value, e_per_adu=1 / gain.value, read_noise_e=read_noise_e), tuple(notes)


def _photon_transfer(pairs: Tensor) -> tuple[Estimate, Estimate]:
    """Line of variance against mean of steady pixels.

    Light that goes on or off is smooth over a few pixels: the mask [1 -2 1] along both axes takes most of it from the
    difference of two frames and leaves the noise (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996), and pixels
    whose surroundings changed are left out.  Surroundings and pixel share no noise, so neither choice biases the other.

    Args:
        pairs: (n, 2, y, x) ADU, consecutive frames.

    Returns:
        Slope [ADU per electron] and where the line meets zero variance [ADU].
    """
    ring = torch.outer(_gaussian_kernel(1.0), _gaussian_kernel(1.0)).double()
    ring[2:5, 2:5] = 0
    second_difference = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    mask = torch.outer(second_difference, second_difference) / 6  # noise of variance 1 keeps variance 1

    def around(images: Tensor) -> Tensor:
        return F.conv2d(images, (ring / ring.sum())[None, None]).flatten()

    def within(images: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(images[..., 2:-2, 2:-2], kernel[None, None]).flatten()

    light, change = pairs.mean(1, keepdim=True), pairs.diff(dim=1)
    unrest, square = around(change).abs(), within(change, mask) ** 2 / 2
    # the variance of the masked difference is that of this mean, for variance is linear in light
    mean = within(light, mask**2)
    order = around(light).argsort()
    # few pixels are bright: ever smaller classes, down to some hundred
    n = len(order)
    ends = [n // 8, n // 4] + [n - n // 2**k for k in range(1, 64) if n // 2**k >= 400]
    classes = []
    for start, end in zip([0, *ends], ends, strict=False):
        part = order[start:end]
        steady = part[unrest[part].argsort()[: math.ceil(len(part) / 4)]]
        classes.append(torch.stack([mean[steady], square[steady]]))
    # the median of a chi-squared variate is 0.455 of its mean
    line = _line(torch.stack([torch.stack([m.mean(), s.median() / 0.455, m.new_tensor(len(m))]) for m, s in classes]))
    for _ in range(5):
        # four standard deviations off are hot pixels and molecules that moved the mean after all
        gain, dark = line[0].value, line[1].value
        least = min(float(s.median()) for _, s in classes)
        points = []
        for m, s in classes:
            keep = s <= 16 * (gain * (m - dark)).clamp_min(least)
            points.append(torch.stack([m[keep].mean(), s[keep].mean(), keep.sum()]))
        line = _line(torch.stack(points))
    return line


def _line(points: Tensor) -> tuple[Estimate, Estimate]:
    """Slope and zero of the line variance = slope * (mean - zero).

    Args:
        points: (m, 3) mean, variance and number of pixels.
    """
    mean, variance, n = points.T
    weight = n / variance.clamp_min(1e-9) ** 2 / 2
    middle, height = ((weight * values).sum() / weight.sum() for values in (mean, variance))
    spread = (weight * (mean - middle) ** 2).sum()
    slope = (weight * (mean - middle) * (variance - height)).sum() / spread
    excess = (weight * (variance - height - slope * (mean - middle)) ** 2).sum() / (len(mean) - 2)
    excess = excess.clamp_min(1)
    relative = torch.hypot((excess / spread).sqrt() / slope, torch.tensor(GAIN_ERROR))
    zero = middle - height / slope
    zero_error = torch.hypot((excess / weight.sum()).sqrt() / slope, (middle - zero) * relative)
    total = int(n.sum())

    def estimate(value: Tensor, error: Tensor) -> Estimate:
        return Estimate(float(value), float(value - 1.96 * error), float(value + 1.96 * error), total)

    return estimate(slope, slope.abs() * relative), estimate(zero, zero_error)
