"""What a calibration of the PSF is worth: a verdict in words, a picture, and a page that holds both and the figures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from decode.atomic import atomic
from decode.calibrate.held_out import LARGEST_BIAS_NM, POOLED_NM, HeldOut, Range, usable_range
from decode.calibrate.psf import PSFCalibration
from decode.calibrate.spline import Noise, centroids
from decode.likelihood import DARKEST
from decode.optics.field import FieldSplinePSF
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.optics.pupil import PupilPSF, noll
from decode.optics.spline import SplinePSF
from decode.progress import Progress, Steps, Stepwise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "Drawn",
    "draw_pictures",
    "save_figure",
    "save_report",
    "verdict",
]

FEW_BEADS = 5
DIM_PHOTONS = 5000.0
"""of a bead in a plane: with less, some beads leave percents of noise in the PSF"""
STRAYED_NM = 5.0
"""rms of the stage's jitter that is worth a word"""
FINE = 0.1
"""smoothness along z from which the PSF follows changes within 300 nm of depth"""
MISFIT = 1.1
"""deviance: from here on what is left is more than noise"""
TILTED = 0.05
"""slope of the PSF's centroid over z: nm a nm"""
FADED = 0.15
"""of the light, from one end of the stack to the other"""
WORSE_THAN_BOUND = 1.3
"""spread of beads that is worth a word"""
TWIN_PHOTONS = 1000.0
"""of a dim molecule, for which depths are compared"""
TWIN_APART_NM = 300.0
TWIN_CONTRAST = 4.0
"""distance of two images in standard deviations; at 4 the wrong one of two is more likely in 2 % of the cases"""
GROUPS = 200
"""of pixels alike in light, in the photon transfer"""
SHOWN = 5
"""depths in the picture"""

AXES = ("x", "y", "z")
INK = ("#1f77b4", "#d95f02", "#2a7f3f")
"""of x, y, z"""

ABERRATIONS = {
    (2, -2): "astigmatism at 45°",
    (2, 2): "astigmatism along x and y",
    (3, -1): "coma along y",
    (3, 1): "coma along x",
    (3, -3): "trefoil, sine",
    (3, 3): "trefoil, cosine",
    (4, 0): "spherical aberration",
    (4, 2): "secondary astigmatism along x and y",
    (4, -2): "secondary astigmatism at 45°",
    (4, 4): "quadrafoil, cosine",
    (4, -4): "quadrafoil, sine",
}


# --- what the beads say ---


@final
@dataclass(frozen=True, kw_only=True)
class Images:
    """Beads beside the model, and the noise that their planes show."""

    measured: Tensor
    """(n, z, y, x) photons"""
    expected: Tensor
    """(n, z, y, x) photons"""
    light: Tensor
    """(n, z) photons of each bead and plane within its crop's PSF"""
    noise: Noise
    """from neighbouring planes, so that it knows neither the camera file nor what the PSF misses"""

    @property
    def residual(self) -> Tensor:
        """(n, z, y, x) measured less expected, in standard deviations of the noise."""
        return (self.measured - self.expected) / self.noise.variance(self.expected).sqrt()

    @property
    def misfit(self) -> float:
        """Mean square of the residual: 1 where there is noise and nothing else."""
        return float(self.residual.square().mean())


@torch.no_grad()
def _images(calibration: PSFCalibration) -> Images:
    """Every bead as the model has it, where and as bright as it was found."""
    psf, z = calibration.psf, calibration.z_nm
    measured = torch.stack([bead.photons for bead in calibration.beads])
    side = measured.shape[-1]
    margin = (psf.patch_px - side) // 2
    corner = torch.tensor([margin * psf.pixel_size_nm] * 2 + [0.0])
    inner = slice(margin, margin + side)
    expected, light = [], []
    for bead, crop, xyz, jitter in zip(
        calibration.beads, measured, calibration.xyz, calibration.jitter_nm, strict=True
    ):
        own = psf.at(*(c * psf.pixel_size_nm for c in bead.centre_px)) if isinstance(psf, FieldSplinePSF) else psf
        at = torch.cat([xyz[:2].expand(len(z), 2), (z + xyz[2])[:, None]], 1) + jitter + corner
        share = torch.cat([own.integrate_pixels(part) for part in at.split(64)])[:, inner, inner]
        photons, background = _brightness(crop, share)
        expected.append(photons[:, None, None] * share + background[:, None, None])
        light.append(photons)
    model = torch.stack(expected)
    return Images(measured=measured, expected=model, light=torch.stack(light), noise=_noise(measured, model))


def _brightness(crop: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """(z,) photons and (z,) photons per pixel that explain a bead best, plane by plane, by weighted least squares."""
    design = torch.stack([share, torch.ones_like(share)], 1).flatten(2).double()
    data = crop.flatten(1).double()
    model = data.mean(1, keepdim=True).expand_as(data)
    linear = data.new_zeros(len(data), 2)
    for _ in range(3):  # weighted by the variance that the last model implies
        weighted = design / model.clamp_min(DARKEST)[:, None]
        linear = torch.linalg.solve(weighted @ design.mT, (weighted @ data[:, :, None])[..., 0])
        model = (linear[:, None] @ design)[:, 0]
    return linear[:, 0].to(crop), linear[:, 1].to(crop)


def _noise(measured: Tensor, expected: Tensor) -> Noise:
    """Photon transfer within the stack: variance against mean, by least squares weighted with the variance itself.

    What the model misses changes little from plane to plane, so that second differences over z (weights 1, -2, 1, of
    squares 6) hold the noise alone.  Pixels are grouped by what is expected of them, not by their noisy counts, and
    the light of each group is measured (Wald, Ann. Math. Stat. 11, 284, 1940): a wrong model groups badly, but does
    not bias.
    """
    square = (measured - expected).double().diff(n=2, dim=1).square().flatten() / 6
    light = measured.double().unfold(1, 3, 1).mean(-1).flatten()
    order = expected[:, 1:-1].flatten().argsort()
    groups = order.tensor_split(min(GROUPS, len(order)))
    mean, variance = (torch.stack([values[g].mean() for g in groups]) for values in (light, square))
    excess, floor = 1.0, float(variance.min())
    design = torch.stack([mean, torch.ones_like(mean)])
    for _ in range(10):
        weight = 1 / (excess * mean + floor).clamp_min(1e-6) ** 2
        slope, level = torch.linalg.solve((design * weight) @ design.T, (design * weight) @ variance).tolist()
        excess, floor = max(slope, 1e-3), max(level, 0.0)
    return Noise(excess, floor)


@torch.no_grad()
def _wobble(psf: PSF, z_nm: Tensor) -> Tensor:
    """(z, 2) nm from the emitter to the centroid of its light."""
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    at = torch.cat([torch.full((len(z_nm), 2), middle), z_nm[:, None]], 1)
    image = torch.cat([psf.integrate_pixels(part) for part in at.split(64)])
    return centroids(image, psf.pixel_size_nm) - middle


@torch.no_grad()
def _twins(calibration: PSFCalibration, noise: Noise) -> tuple[float, float] | None:
    """The two depths, far apart, of a dim molecule that look most alike, if they do within the noise."""
    psf = calibration.psf
    middle = psf.patch_px / 2 * psf.pixel_size_nm
    z = torch.linspace(*calibration.file.z_range_nm, 41)
    images = psf.integrate_pixels(torch.cat([torch.full((len(z), 2), middle), z[:, None]], 1)).clamp_min(0).flatten(1)
    light = TWIN_PHOTONS * images
    variance = noise.variance(light.mean(0) + calibration.background.median())
    distance = torch.cdist(light / variance.sqrt(), light / variance.sqrt())
    distance[(z[:, None] - z).abs() < TWIN_APART_NM] = math.inf
    nearest = int(distance.argmin())
    a, b = sorted((float(z[nearest // len(z)]), float(z[nearest % len(z)])))
    return (a, b) if float(distance.min()) < TWIN_CONTRAST else None


# --- the verdict ---


def verdict(calibration: PSFCalibration) -> tuple[str, ...]:
    """What the calibration is good for, what limits it and what would make it better.

    Returns:
        Plain sentences; the first says over which depths it is usable, the others what limits it, gravest first.
    """
    return _verdict(calibration, _images(calibration))


def _verdict(calibration: PSFCalibration, images: Images) -> tuple[str, ...]:
    sentences = [_range_sentence(calibration), *_limits(calibration, images)]
    if len(sentences) == 1:
        sentences.append("Nothing in the beads speaks against this PSF.")
    return (*sentences, *(f"{note[0].upper()}{note[1:]}." for note in calibration.notes))


def _range_sentence(calibration: PSFCalibration) -> str:
    held_out = calibration.held_out
    if held_out is None:
        return (
            "How good the PSF is cannot be told from one bead, for none is left to try it on: record at least "
            f"{FEW_BEADS}."
        )
    found, flat = usable_range(held_out), usable_range(held_out, lateral=True)
    if found is None:
        sideways = "neither in x and y" if flat is None else f"in x and y usable over {flat}"
        return (
            f"No depth can be told well with this PSF; {sideways}. Use it for 2D, or bring in an astigmatic lens or "
            "a phase mask for 3D."
        )
    steady = held_out.steady().among(held_out.inside(found))
    spread, bias = steady.spread_nm()[:, 2], steady.bias_nm(smooth_nm=POOLED_NM).abs()
    wider = flat is not None and flat.high - flat.low > found.high - found.low + 2 * POOLED_NM
    return (
        f"Usable over {found}: there a bead that was not fitted is found to {float(spread.min()):.1f} nm in z at best "
        f"and {float(spread.max()):.1f} nm at worst, with a bias of at most {float(bias[:, 2].max()):.1f} nm in z and "
        f"{float(bias[:, :2].max()):.1f} nm in x and y.{f' Without depth, usable over {flat}.' if wider else ''}"
    )


def _limits(calibration: PSFCalibration, images: Images) -> list[str]:
    held_out, n = calibration.held_out, len(calibration.beads)
    found = usable_range(held_out) if held_out is not None else None
    return [
        sentence
        for sentence in (
            _misfit_sentence(calibration.psf, calibration.deviance, images.misfit),
            _few_sentence(n, calibration),
            _dim_sentence(images.light),
            _bound_sentence(held_out, found),
            _stage_sentence(calibration),
            _wander_sentence(calibration),
            _tilt_sentence(calibration, found),
            _lost_sentence(held_out, found),
            _fade_sentence(images.light),
            _twin_sentence(calibration, images.noise),
            _ends_sentence(held_out, found),
        )
        if sentence
    ]


def _misfit_sentence(psf: PSF, deviance: float, misfit: float) -> str:
    if deviance > MISFIT and misfit > 1 + 0.5 * (deviance - 1):
        spline = isinstance(psf, SplinePSF | FieldSplinePSF)
        advice = "Look at the residuals: take out" if spline else "Try the spline model, take out"
        return (
            f"The PSF does not explain the beads: what is left is {deviance:.2f} times the variance of noise (1 is "
            f"noise alone). {advice} beads that look different, use smaller beads."
        )
    if not 2 - MISFIT <= deviance <= MISFIT:
        more = "more" if deviance > 1 else "less"
        return (
            f"The images hold {more} noise than the camera file says (deviance {deviance:.2f} instead of 1), which the "
            "PSF is not to blame for: check gain, EM gain and baseline, then calibrate again."
        )
    if misfit > MISFIT:
        return (
            f"The PSF misses some of the beads' light ({misfit:.2f} times the variance of noise), which the camera "
            "file hides by stating too much noise: check gain and EM gain, then calibrate again."
        )
    return ""


def _counted(n: int) -> str:
    return "one bead" if n == 1 else f"{n} beads"


def _few_sentence(n: int, calibration: PSFCalibration) -> str:
    lost = len(calibration.rejected)
    why = f"; {lost} more could not be used, see the table" if lost else ""
    if n < FEW_BEADS:
        return f"Only {_counted(n)}{why}: their noise stays in the PSF. Record {2 * FEW_BEADS} or more."
    if lost > n:
        return f"{lost} of {lost + n} bright spots could not be used (see the table): dilute the beads, move the field."
    return ""


def _dim_sentence(light: Tensor) -> str:
    median = float(light.mean(1).median())
    if median >= DIM_PHOTONS:
        return ""
    return (
        f"The beads are dim: {median:.0f} photons a plane, of which noise leaves its mark in the PSF. Expose longer, "
        f"use more light or brighter beads, up to {DIM_PHOTONS:.0f} or more without saturation."
    )


def _bound_sentence(held_out: HeldOut | None, found: Range | None) -> str:
    if held_out is None or found is None:
        return ""
    steady = held_out.steady().among(held_out.inside(found))
    ratio = (steady.spread_nm() / steady.rms_bound_nm()).square().mean(0).sqrt()
    freedom = (len(steady.error_nm) - 1) * len(steady.z_nm)
    worst = int(ratio.argmax())
    if float(ratio[worst]) <= WORSE_THAN_BOUND * (1 + 2 / math.sqrt(2 * freedom)):
        return ""
    return (
        f"Beads that were not fitted spread {float(ratio[worst]):.1f} times as far in {AXES[worst]} as their light "
        "allows: beads differ (field, size, tilt of the coverslip) or the PSF is noisy. Record more beads near the "
        "middle of the field."
    )


def _stage_sentence(calibration: PSFCalibration) -> str:
    rms = calibration.jitter_nm.square().mean((0, 1)).sqrt()
    if float(rms.max()) <= STRAYED_NM:
        return ""
    x, y, z = rms.tolist()
    one = len({bead.stack for bead in calibration.beads}) == 1
    where = "from plane to plane" if one else "from where it is in the other stacks"
    return (
        f"All beads of a stack shift together {where}, by {x:.1f}, {y:.1f} and {z:.1f} nm rms in x, y and z. This is "
        "taken for the stage's and kept out of the PSF, but not wholly."
    )


def _wander_sentence(calibration: PSFCalibration) -> str:
    tried = calibration.depth_smoothness
    if not tried or min(tried, key=lambda d: tried[d]) < FINE or len({bead.stack for bead in calibration.beads}) > 1:
        return ""
    return (
        "Beads that were held out call for a PSF with detail within 300 nm of depth; but they lie in one stack, in "
        "which a stage that wanders slowly would look the same. A second stack tells: only the PSF is the same in both."
    )


def _slope(values: Tensor, z: Tensor) -> Tensor:
    """Of straight lines through (z, ...) by least squares."""
    centred = (z - z.mean()).to(values)
    return torch.tensordot(centred, values, 1) / centred.square().sum()


def _tilt_sentence(calibration: PSFCalibration, found: Range | None) -> str:
    low, high = found or calibration.file.z_range_nm
    z = torch.linspace(low, high, 41)
    slope = float(_slope(_wobble(calibration.psf, z), z).norm())
    if slope <= TILTED:
        return ""
    return (
        f"The spot walks sideways by {1000 * slope:.0f} nm per µm of depth: a tilted axis, which the PSF rightly "
        "holds, or drift during the scan, which it should not. Record the stack in both directions: only drift changes "
        "its sign."
    )


def _lost_sentence(held_out: HeldOut | None, found: Range | None) -> str:
    if held_out is None or found is None:
        return ""
    lost = held_out.among(held_out.inside(found)).lost()
    if not bool(lost.any()):
        return ""
    return (
        f"{float(lost.float().mean()):.1%} of the beads' images in this range were found at a wholly different depth, "
        "and are left out of the figures of this verdict: depths look alike, more so to dim molecules."
    )


def _fade_sentence(light: Tensor) -> str:
    mean = (light / light.mean(1, keepdim=True)).mean(0)
    # light fades by the same part in each plane, and never by more than there is
    change = math.expm1(float(_slope(mean.clamp_min(0.01).log(), torch.linspace(0, 1, len(mean)))))
    if abs(change) <= FADED:
        return ""
    verb = "lose" if change < 0 else "gain"
    return (
        f"The beads {verb} {abs(change):.0%} of their light from the first to the last plane: they bleach, the lamp "
        "is not steady, or the crop cuts the light off."
    )


def _twin_sentence(calibration: PSFCalibration, noise: Noise) -> str:
    twins = _twins(calibration, noise)
    if twins is None:
        return ""
    a, b = twins
    return (
        f"A molecule of {TWIN_PHOTONS:.0f} photons looks alike at {a:.0f} and at {b:.0f} nm: dim molecules will be "
        "found at the wrong one of the two."
    )


def _ends_sentence(held_out: HeldOut | None, found: Range | None) -> str:
    """Why the range is no wider."""
    if held_out is None or found is None:
        return ""
    z, checks = held_out.z_nm, held_out.checks()
    low, high = int((z == found.low).nonzero()), int((z == found.high).nonzero())
    ends = []
    for word, plane in (("below", low - 1), ("above", high + 1)):
        beyond = found.low - float(z[0]) if word == "below" else float(z[-1]) - found.high
        if beyond >= POOLED_NM:
            ends.append(f"{word} it {' and '.join(why for why, passed in checks.items() if not passed[plane])}")
    if not ends:
        return "The PSF is still good at both ends of the stack: a longer scan would widen the range of depth."
    return f"This limits the range: {', '.join(ends)}."


# --- the picture ---


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """A part of the report that is drawn."""

    title: str
    caption: str
    height: float
    """inches, of a width of 10"""
    draw: Callable[[SubFigure | Figure, PSFCalibration, Images], None]


def save_figure(calibration: PSFCalibration, path: Path | str) -> None:
    """Write all pictures of the report as one PNG.

    Raises:
        OSError: if it cannot be written.
    """
    images, parts = _images(calibration), _pictures(calibration)
    figure = _figure(sum(part.height + 0.4 for part in parts))
    heights = [part.height + 0.4 for part in parts]
    slots = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for slot, part in zip(slots, parts, strict=True):
        slot.suptitle(part.title, fontsize=13, fontweight="bold")
        part.draw(slot, calibration, images)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


@final
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture of the report."""

    title: str
    caption: str
    png: bytes


@Stepwise
def draw_pictures(calibration: PSFCalibration) -> Steps[tuple[Drawn, ...]]:
    """The pictures of the report, each in a figure of its own."""
    images = _images(calibration)
    drawn: list[Drawn] = []
    parts = _pictures(calibration)
    for part in parts:
        message = f"drawing {part.title[0].lower()}{part.title[1:]}"
        yield Progress(len(drawn) / len(parts), message)
        figure, png = _figure(part.height), io.BytesIO()
        part.draw(figure, calibration, images)
        yield Progress((len(drawn) + 0.5) / len(parts), message)
        figure.savefig(png, format="png", dpi=110)
        drawn.append(Drawn(title=part.title, caption=part.caption, png=png.getvalue()))
    return tuple(drawn)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _pictures(calibration: PSFCalibration) -> list[Picture]:
    parts = [
        Picture(
            title="Beads against the PSF",
            caption="A row is a depth; bead and PSF share its grey scale. Residuals are in standard deviations of the "
            "noise: the last column adds up all beads and neighbouring planes, and would be featureless if the PSF "
            "were perfect.",
            height=10.5,
            draw=_draw_crops,
        ),
        Picture(
            title="The PSF over depth",
            caption="Left: how far the centroid of the light lies from the emitter (the wobble, which the PSF "
            "contains). Right: how far the beads of each stack shifted together, as that is taken for the stage's: "
            "of one stack what is independent from plane to plane, of several what differs between them.",
            height=3.2,
            draw=_draw_depth,
        ),
        Picture(
            title="Beads in the field",
            caption="Numbers are those of the table of beads.",
            height=4.6,
            draw=_draw_field,
        ),
    ]
    if calibration.held_out is not None:
        precision = Picture(
            title="Beads that were not fitted",
            caption="Each bead was localized, plane by plane, with a PSF fitted to the others. Top: bias, with and "
            "without the stage's jitter. Bottom: spread against the Cramér-Rao bound, which no method can beat. "
            f"Averaged over {POOLED_NM:.0f} nm of depth but for dots. Shaded: the usable range.",
            height=6.0,
            draw=_draw_precision,
        )
        parts.insert(1, precision)
    if isinstance(calibration.psf, FieldSplinePSF):
        over_field = Picture(
            title="The PSF over the field",
            caption="In the four corners of the field and in its middle, on one grey scale a row; the bead stack's "
            "upper left corner is the first.",
            height=6.0,
            draw=_draw_over_field,
        )
        parts.append(over_field)
    return parts


def _draw_crops(figure: SubFigure | Figure, calibration: PSFCalibration, images: Images) -> None:
    z = calibration.z_nm
    planes = np.linspace(0.06, 0.94, SHOWN) * (len(z) - 1)
    light = images.light.mean(1)
    bead = int((light - light.median()).abs().argmin())
    side = images.measured.shape[-1] * calibration.psf.pixel_size_nm / 1000
    reach = max(0, round(POOLED_NM / 4 / float(z.diff().median()))) if len(z) > 1 else 0
    residual = images.residual
    axes = figure.subplots(SHOWN, 4)
    shown: Any = None
    for row, plane in zip(axes, planes.round().astype(int).tolist(), strict=True):
        near = residual[:, max(0, plane - reach) : plane + reach + 1].flatten(0, 1)
        pair = images.measured[bead, plane], images.expected[bead, plane]
        black = float(torch.stack(pair).quantile(0.02))
        white = float(torch.stack(pair).quantile(0.999))
        for ax, image in zip(row[:2], pair, strict=True):
            grey = ax.imshow(image.numpy(), cmap="gray", vmin=black, vmax=white, extent=(0, side, side, 0))
        figure.colorbar(grey, ax=row[:2], shrink=0.85, pad=0.01).set_label("photons", fontsize=8)
        for ax, image in zip(row[2:], (residual[bead, plane], near.sum(0) / math.sqrt(len(near))), strict=True):
            shown = ax.imshow(image.numpy(), cmap="RdBu_r", vmin=-5, vmax=5, extent=(0, side, side, 0))
        row[0].set_ylabel(f"z = {float(z[plane]):.0f} nm", fontsize=11)
        for ax in row:
            ax.set(xticks=[], yticks=[])
    titles = f"bead {bead + 1}", "PSF", f"residual of bead {bead + 1}", "residual of all beads"
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11)
    axes[-1][0].set_xlabel(f"{side:.2f} µm wide", fontsize=9)
    figure.colorbar(shown, ax=axes[:, 2:], shrink=0.4, pad=0.02, extend="both").set_label(
        "residual, standard deviations of the noise"
    )


def _draw_precision(figure: SubFigure | Figure, calibration: PSFCalibration, images: Images) -> None:
    held_out = calibration.held_out
    assert held_out is not None
    steady, z = held_out.steady(), held_out.z_nm.numpy()
    found = usable_range(held_out)
    axes = figure.subplots(2, 3, sharex=True)
    whole, bias = (h.bias_nm(smooth_nm=POOLED_NM).numpy() for h in (held_out, steady))
    spread, bound = steady.spread_nm().numpy(), held_out.rms_bound_nm().numpy()
    for axis, ((top, bottom), name) in enumerate(zip(axes.T, AXES, strict=True)):
        raw = held_out.error_nm[..., axis].mean(0).numpy()
        top.plot(z, raw, ".", color="0.7", markersize=3, label="mean of the beads")
        top.plot(z, whole[:, axis], color="0.45", linewidth=1, label="averaged over depth")
        top.plot(z, bias[:, axis], color=INK[axis], linewidth=2, label="without jitter")
        top.axhline(0, color="black", linewidth=0.5)
        limit = max(1.5 * LARGEST_BIAS_NM[axis] / 2, 1.3 * float(np.quantile(np.abs(raw), 0.97)))
        top.set(title=name, ylim=(-limit, limit))
        bottom.plot(z, spread[:, axis], color=INK[axis], linewidth=2, label="spread of the beads")
        finite = np.where(np.isfinite(bound[:, axis]), bound[:, axis], np.nan)
        bottom.plot(z, finite, "--", color="black", linewidth=1.2, label="Cramér-Rao bound")
        tallest = np.nanquantile(np.concatenate([spread[:, axis], finite]), 0.95) if np.isfinite(finite).any() else 1
        bottom.set(xlabel="z, nm", ylim=(0, 1.5 * tallest))
        for ax in (top, bottom):
            if found is not None:
                ax.axvspan(*found, color="#2a7f3f", alpha=0.07, linewidth=0)
            ax.grid(alpha=0.25)
    for ax, label in zip(axes[:, 0], ("bias, nm", "spread, nm"), strict=True):
        ax.set_ylabel(label)
        ax.legend(fontsize=8, loc="upper center")


def _draw_depth(figure: SubFigure | Figure, calibration: PSFCalibration, images: Images) -> None:
    wobble_ax, jitter_ax = figure.subplots(1, 2)
    z, strayed = calibration.z_nm, bool(calibration.jitter_nm.any())
    of_stack = {bead.stack: jitter for bead, jitter in zip(calibration.beads, calibration.jitter_nm, strict=True)}
    jitter = torch.cat([*of_stack.values()], 1) if strayed else torch.zeros(len(z), 0)
    for ax, lines, name in ((wobble_ax, _wobble(calibration.psf, z), "centroid"), (jitter_ax, jitter, "jitter")):
        for i, line in enumerate(lines.T.numpy()):
            ax.plot(z.numpy(), line, color=INK[i % 3], label=AXES[i] if i < 3 else None, linewidth=1.2)
        reach = max(5.0, 1.2 * float(lines.abs().max()) if lines.numel() else 0.0)
        ax.set(xlabel="z, nm", ylabel=f"{name}, nm", xlim=(float(z[0]), float(z[-1])), ylim=(-reach, reach))
        ax.grid(alpha=0.25)
    wobble_ax.set_title("wobble of the PSF", fontsize=11)
    jitter_ax.set_title("jitter of the stage", fontsize=11)
    wobble_ax.legend(fontsize=9, ncols=2)
    if strayed:
        jitter_ax.legend(fontsize=9, ncols=3)
    else:
        jitter_ax.text(0.5, 0.6, _no_jitter(calibration), transform=jitter_ax.transAxes, ha="center", color="0.4")


@torch.no_grad()
def _draw_over_field(figure: SubFigure | Figure, calibration: PSFCalibration, images: Images) -> None:
    psf, side = calibration.psf, images.measured.shape[-1]
    assert isinstance(psf, FieldSplinePSF)
    (x0, x1), (y0, y1) = psf.field_nm
    places = [(x0, y0), (x1, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x0, y1), (x1, y1)]
    depths = [0.7 * z for z in (calibration.file.z_range_nm[0], 0.0, calibration.file.z_range_nm[1])]
    middle, margin = psf.patch_px / 2 * psf.pixel_size_nm, (psf.patch_px - side) // 2
    at = torch.tensor([[middle, middle, z] for z in depths])
    shown = torch.stack([psf.integrate_pixels(at, torch.tensor([place] * len(depths))) for place in places], 1)
    shown = shown[..., margin : margin + side, margin : margin + side]
    axes = figure.subplots(len(depths), len(places))
    for row, z, line in zip(axes, depths, shown, strict=True):
        row[0].set_ylabel(f"z = {z:.0f} nm", fontsize=11)
        for ax, image in zip(row, line, strict=True):
            ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(line.max()))
            ax.set(xticks=[], yticks=[])
    for ax, (x, y) in zip(axes[0], places, strict=True):
        ax.set_title(f"x {x / 1000:.0f}, y {y / 1000:.0f} µm", fontsize=11)


def _no_jitter(calibration: PSFCalibration) -> str:
    spline = isinstance(calibration.psf, SplinePSF | FieldSplinePSF)
    return "none beyond noise" if spline else "not fitted by this model"


def _draw_field(figure: SubFigure | Figure, calibration: PSFCalibration, images: Images) -> None:
    field, light = figure.subplots(1, 2)
    pixel = calibration.psf.pixel_size_nm / 1000
    places = [(bead, True) for bead in calibration.beads] + [(bead, False) for bead in calibration.rejected]
    for number, (bead, used) in enumerate(places, 1):
        x, y = (c * pixel for c in bead.centre_px)
        field.plot(x, y, "o" if used else "x", color=INK[2] if used else "#c0392b", markersize=7)
        field.annotate(f"{number}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)
    for label, marker, ink in (("used", "o", INK[2]), ("rejected", "x", "#c0392b")):
        if label == "used" or calibration.rejected:
            field.plot([], [], marker, color=ink, label=label)
    _frame_field(field, calibration, pixel)
    z = calibration.z_nm.numpy()
    for number, photons in enumerate(images.light, 1):
        light.plot(z, photons.numpy(), linewidth=1, label=f"{number}" if len(calibration.beads) <= 8 else None)
    light.set(xlabel="z, nm", ylabel="photons", title="light of each bead", ylim=(0, None))
    light.grid(alpha=0.25)
    if len(calibration.beads) <= 8:
        light.legend(title="bead", fontsize=8, ncols=2, loc="lower center")
    for ax in (field, light):
        ax.title.set_fontsize(11)


def _frame_field(field: Axes, calibration: PSFCalibration, pixel_um: float) -> None:
    centres = [bead.centre_px for bead in calibration.beads] + [spot.centre_px for spot in calibration.rejected]
    side = calibration.beads[0].photons.shape[-1]
    right, bottom = (pixel_um * (max(c[i] for c in centres) + side) for i in (0, 1))
    stacks = len(calibration.file.sources)
    field.set(
        xlabel="x, µm",
        ylabel="y, µm",
        xlim=(0, right),
        ylim=(bottom, 0),
        aspect="equal",
        title="field" if stacks < 2 else f"field of {stacks} stacks, one upon the other",
    )
    field.grid(alpha=0.25)
    field.legend(fontsize=8, loc="upper right")


# --- the page ---

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; margin: 0.8em 0; font-size: 0.9em } caption { font-weight: bold; text-align: left }
figcaption { color: #555; font-size: 0.9em }
td { white-space: nowrap } td.words { white-space: normal }
th, td { border-bottom: 1px solid #ddd; padding: 0.25em 0.6em; text-align: right; vertical-align: top }
th:first-child, td:first-child, .words { text-align: left }
figure { margin: 0 } img { width: 100% }
.verdict { background: #f2f6f3; border-left: 4px solid #2a7f3f; padding: 0.6em 1.2em } .verdict p { margin: 0.5em 0 }
.verdict p:first-child { font-weight: bold }
"""


def save_report(calibration: PSFCalibration, path: Path | str, *, pictures: Sequence[Drawn] | None = None) -> None:
    """Write the verdict, the pictures and the figures as one HTML page that needs nothing else, neither scripts.

    Args:
        calibration: what it is about.
        path: file to write.
        pictures: those of `draw_pictures`; None draws them.

    Raises:
        OSError: if it cannot be written.
    """
    images = _images(calibration)
    names = ", ".join(Path(source).name for source in calibration.file.sources)
    kind = type(calibration.psf).__name__
    body = [
        "<h1>Calibration of the PSF</h1>",
        f"<p>{escape(kind)} from {_counted(len(calibration.beads))}{f' of {escape(names)}' if names else ''}</p>",
        '<div class="verdict">',
        *(f"<p>{escape(sentence)}</p>" for sentence in _verdict(calibration, images)),
        "</div>",
    ]
    for drawn in draw_pictures(calibration) if pictures is None else pictures:
        source = base64.b64encode(drawn.png).decode("ascii")
        body.append(
            f'<h2>{escape(drawn.title)}</h2><figure><img alt="{escape(drawn.title)}" '
            f'src="data:image/png;base64,{source}"><figcaption>{escape(drawn.caption)}</figcaption></figure>'
        )
    body += ["<h2>Figures</h2>", *_tables(calibration, images)]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Calibration of the PSF</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _tables(calibration: PSFCalibration, images: Images) -> list[str]:
    tables = []
    if calibration.held_out is not None:
        tables.append(_precision_table(calibration.held_out))
    facts = calibration.file
    n = len(calibration.beads)
    rms = calibration.jitter_nm.square().mean((0, 1)).sqrt().tolist()
    jitter = ", ".join(f"{value:.1f}" for value in rms) + " nm rms" if any(rms) else _no_jitter(calibration)
    rows = [
        ("beads used, rejected", f"{n}, {len(calibration.rejected)}"),
        ("depth of the stack", f"{facts.z_range_nm[0]:.0f} to {facts.z_range_nm[1]:.0f} nm"),
        ("distance of planes", f"{facts.z_step_nm:g} nm"),
        ("pixel size", f"{calibration.psf.pixel_size_nm:g} nm"),
        ("light of a bead in a plane", f"{float(images.light.mean()):.0f} photons"),
        ("background", f"{float(calibration.background.mean()):.2f} photons per pixel"),
        ("jitter of the stage in x, y, z", jitter),
        ("deviance, with the noise of the camera file", f"{calibration.deviance:.3f}"),
        ("the same, with the noise between planes", f"{images.misfit:.3f}"),
        ("variance of the noise between planes", f"{images.noise.excess:.2f} photons + {images.noise.floor:.1f}"),
        ("x = y = 0 of the PSF", facts.origin or "not stated"),
        ("z = 0 of the PSF", "the plane in focus; positive as the stage's z"),
    ]
    tables.append(_table("The calibration", (), rows))
    for title, tried in (
        ("Smoothness tried", calibration.smoothness),
        ("Smoothness along z tried", calibration.depth_smoothness),
    ):
        if tried:
            best = min(tried, key=lambda s: tried[s])
            lines = [(f"{v:g}", f"{lost:.4f}", "chosen" if v == best else "") for v, lost in sorted(tried.items())]
            tables.append(_table(title, ("smoothness", "deviance of held-out beads", ""), lines))
    tables.append(_psf_table(calibration.psf))
    tables.append(_bead_table(calibration, images))
    return [table for table in tables if table]


def _precision_table(held_out: HeldOut) -> str:
    found = usable_range(held_out)
    finite = held_out.rms_bound_nm().isfinite().all(1)
    use = finite if found is None else held_out.inside(found)
    if not bool(use.any()):
        return ""
    low, high = (float(z) for z in held_out.z_nm[use][[0, -1]])
    whole, steady = (h.among(use).summary() for h in (held_out, held_out.steady()))
    strayed = bool(held_out.jitter_nm.any())
    figures = {
        "bias, nm rms over z": whole["bias_nm"],
        "error, nm rms": whole["rmse_nm"],
        "Cramér-Rao bound, nm rms": whole["bound_nm"],
        "error over bound": whole["rmse_over_bound"],
        "bias without jitter and other depths, nm rms over z": steady["bias_nm"],
        "error without jitter and other depths, nm rms": steady["rmse_nm"],
        "error without jitter and other depths over bound": steady["rmse_over_bound"],
    }
    lost = held_out.among(use).lost()
    shown = list(figures.items()) if strayed or bool(lost.any()) else list(figures.items())[:4]
    rows = [(label, *(f"{value:.2f}" for value in values)) for label, values in shown]
    rows.append(("images found at another depth", "", "", f"{int(lost.sum())} of {lost.numel()}"))
    where = "the usable range" if found is not None else "all depths with a bound"
    return _table(f"Beads that were not fitted, over {where}: {Range(low, high)}", ("", *AXES), rows)


def _psf_table(psf: PSF) -> str:
    if isinstance(psf, PupilPSF):
        indices = {noll(i): i for i in range(1, 67)}
        milliwaves = 1000 / psf.wavelength_nm
        modes = [
            (ABERRATIONS.get(mode, f"Zernike n = {mode[0]}, m = {mode[1]}"), f"{mode[0]}, {mode[1]}",
             f"{indices.get(mode, '')}", f"{value:z.1f}", f"{value * milliwaves:z.0f}")
            for mode, value in zip(psf.modes, psf.zernike_nm.tolist(), strict=True)
        ]  # fmt: skip
        total = float(psf.zernike_nm.detach().norm())
        modes.append(("all together", "", "", f"{total:.1f}", f"{total * milliwaves:.0f}"))
        optics = [
            ("numerical aperture", f"{psf.numerical_aperture.item():.3f}"),
            ("wavelength", f"{psf.wavelength_nm:g} nm"),
            ("refractive index of sample, immersion", f"{psf.sample_index:g}, {psf.immersion_index:g}"),
            ("blur beyond diffraction", f"{psf.blur_nm.item():.1f} nm"),
            ("loss towards the rim", f"{psf.apodization.item():.3f}"),
        ]
        head = ("aberration", "n, m", "Noll", "nm rms", "mλ rms")
        return _table("Aberrations in the pupil", head, modes) + _table("Optics", (), optics)
    if isinstance(psf, GaussianPSF):
        third, fourth = psf.orders.tolist()
        rows = [
            ("standard deviation in focus", f"{psf.sigma_nm.item():.1f} nm"),
            ("depth of focus", f"{psf.depth_nm.item():.0f} nm"),
            ("half the distance of the foci of x and y", f"{psf.gap_nm.item():.0f} nm"),
            ("third and fourth order of the defocus", f"{third:.3f}, {fourth:.3f}"),
        ]
        return _table("The Gaussian", (), rows)
    return ""


def _bead_table(calibration: PSFCalibration, images: Images) -> str:
    rows = []
    for i, bead in enumerate(calibration.beads):
        error = "" if calibration.held_out is None else f"{_errors(calibration.held_out)[i]}"
        rows.append((
            f"{i + 1}", f"{bead.stack + 1}", f"{bead.centre_px[0]:.1f}, {bead.centre_px[1]:.1f}",
            f"{float(images.light[i].mean()):.0f}", f"{float(calibration.background[i]):.1f}",
            f"{float(calibration.xyz[i, 2]):z.1f}", error, "used",
        ))  # fmt: skip
    for i, spot in enumerate(calibration.rejected, len(rows) + 1):
        place = f"{spot.centre_px[0]:.1f}, {spot.centre_px[1]:.1f}"
        rows.append((f"{i}", f"{spot.stack + 1}", place, "", "", "", "", spot.reason))
    head = (
        "bead", "stack", "x, y, px", "photons", "background", "height, nm", "error in x, y, z, nm", "used, or why not"
    )  # fmt: skip
    return _table("Beads", head, rows)


def _errors(held_out: HeldOut) -> list[str]:
    """Of each bead, rms over the usable depths without the stage's jitter."""
    found = usable_range(held_out)
    use = torch.ones_like(held_out.z_nm, dtype=torch.bool) if found is None else held_out.inside(found)
    rms = held_out.steady().error_nm[:, use].square().mean(1).sqrt()
    return [", ".join(f"{value:.1f}" for value in bead) for bead in rms.tolist()]


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str, tag: str, like: str) -> str:
        # numbers stand under one another, words at the left
        words = "" if like[:1] in "-0123456789" else ' class="words"'
        return f"<{tag}{words}>{escape(text)}</{tag}>"

    titles = "".join(cell(name, "th", like) for name, like in zip(head, rows[0], strict=True)) if head else ""
    lines = "".join(f"<tr>{''.join(cell(text, 'td', text) for text in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{titles}</tr>{lines}</table>"
