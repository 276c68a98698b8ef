"""The pictures of a report."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decode.atomic import atomic
from decode.calibrate.held_out import LARGEST_BIAS_NM, POOLED_NM, HeldOut
from decode.calibrate.psf import PSFCalibration
from decode.calibrate.report.evidence import Evidence
from decode.calibrate.report.tables import AXES, no_jitter
from decode.progress import Progress, Steps, Stepwise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["Drawn", "draw_pictures", "save_figure"]

INK = ("#1f77b4", "#d95f02", "#2a7f3f")
"""colours of x, y, z"""
GREEN, RED = INK[2], "#c0392b"
"""colours of used and of unused items"""
WIDTH_INCHES = 10.0
DOTS_PER_INCH = 110
HEADING_INCHES = 0.4
"""height of the heading above a picture among others"""
SHOWN_DEPTHS = 5
"""number of depths at which beads and PSF are shown side by side"""
OUTER_DEPTHS = 0.06
"""share of the stack at either end beyond the first and last depth shown"""
LARGEST_RESIDUAL = 5.0
"""residual at the ends of the colour scale, standard deviations"""
NAMED_BEADS = 8
"""most beads that a legend names"""
SMALLEST_REACH_NM = 5.0
"""least half-range of an axis of wobble or jitter"""


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the report, and how it is drawn."""

    title: str
    caption: str
    height: float
    """inches"""
    draw: Callable[[SubFigure | Figure, Evidence], None]
    applies: Callable[[Evidence], bool] = lambda evidence: True


@final
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture of the report."""

    title: str
    caption: str
    png: bytes


def save_figure(calibration: PSFCalibration, path: Path | str) -> None:
    """Write all pictures of the report as one PNG.

    Raises:
        OSError: if it cannot be written.
    """
    evidence = Evidence(calibration)
    pictures = _pictures(evidence)
    heights = [picture.height + HEADING_INCHES for picture in pictures]
    figure = _blank(sum(heights))
    slots = figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)[:, 0]
    for slot, picture in zip(slots, pictures, strict=True):
        slot.suptitle(picture.title, fontsize=13, fontweight="bold")
        picture.draw(slot, evidence)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


@Stepwise
def draw_pictures(calibration: PSFCalibration) -> Steps[tuple[Drawn, ...]]:
    """The pictures of the report, each in a figure of its own."""
    evidence = Evidence(calibration)
    pictures = _pictures(evidence)
    drawn: list[Drawn] = []
    for picture in pictures:
        message = f"drawing {picture.title[0].lower()}{picture.title[1:]}"
        yield Progress(len(drawn) / len(pictures), message)
        figure, png = _blank(picture.height), io.BytesIO()
        picture.draw(figure, evidence)
        yield Progress((len(drawn) + 0.5) / len(pictures), message)
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
        drawn.append(Drawn(title=picture.title, caption=picture.caption, png=png.getvalue()))
    return tuple(drawn)


def _pictures(evidence: Evidence) -> list[Picture]:
    return [picture for picture in PICTURES if picture.applies(evidence)]


def _blank(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# --- beads against the PSF ---


def _draw_crops(figure: SubFigure | Figure, evidence: Evidence) -> None:
    images, z = evidence.images, evidence.calibration.z_nm
    light = images.photons.mean(1)
    bead = int((light - light.median()).abs().argmin())
    side_um = images.measured.shape[-1] * evidence.psf.pixel_size_nm / 1000
    residual = images.residual
    axes = figure.subplots(SHOWN_DEPTHS, 4)
    shown: Any = None
    for row, plane in zip(axes, _shown_planes(len(z)), strict=True):
        pair = (images.measured[bead, plane], images.expected[bead, plane])
        grey = _show_pair(row[:2], pair)
        figure.colorbar(grey, ax=row[:2], shrink=0.85, pad=0.01).set_label("photons", fontsize=8)
        scale = {"cmap": "RdBu_r", "vmin": -LARGEST_RESIDUAL, "vmax": LARGEST_RESIDUAL}
        row[2].imshow(residual[bead, plane].numpy(), **scale)
        shown = row[3].imshow(_summed(residual, plane, z).numpy(), **scale)
        row[0].set_ylabel(f"z = {float(z[plane]):.0f} nm", fontsize=11)
        for ax in row:
            ax.set(xticks=[], yticks=[])
    titles = f"bead {bead + 1}", "PSF", f"residual of bead {bead + 1}", "residual of all beads"
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11)
    axes[-1][0].set_xlabel(f"{side_um:.2f} µm wide", fontsize=9)
    bar = figure.colorbar(shown, ax=axes[:, 2:], shrink=0.4, pad=0.02, extend="both")
    bar.set_label("residual, standard deviations of the noise")


def _shown_planes(n_planes: int) -> list[int]:
    at = np.linspace(OUTER_DEPTHS, 1 - OUTER_DEPTHS, SHOWN_DEPTHS) * (n_planes - 1)
    planes: list[int] = at.round().astype(int).tolist()
    return planes


def _show_pair(axes: npt.NDArray[Any], pair: tuple[Tensor, Tensor]) -> Any:
    """Two images on one grey scale."""
    both = torch.stack(pair)
    black, white = float(both.quantile(0.02)), float(both.quantile(0.999))
    for ax, image in zip(axes, pair, strict=True):
        grey = ax.imshow(image.numpy(), cmap="gray", vmin=black, vmax=white)
    return grey


def _summed(residual: Tensor, plane: int, z_nm: Tensor) -> Tensor:
    """(y, x) sum of the residuals of all beads in a plane and its neighbours, scaled to variance
    1."""
    reach = 0
    if len(z_nm) > 1:
        reach = max(0, round(POOLED_NM / 4 / float(z_nm.diff().median())))
    near = residual[:, max(0, plane - reach) : plane + reach + 1].flatten(0, 1)
    return near.sum(0) / math.sqrt(len(near))


# --- which way is up ---


@torch.no_grad()
def _draw_direction(figure: SubFigure | Figure, evidence: Evidence) -> None:
    psf, depth = evidence.psf, evidence.halfway_nm
    middle, side = psf.patch_px / 2 * psf.pixel_size_nm, evidence.images.measured.shape[-1]
    margin = (psf.patch_px - side) // 2
    crop = slice(margin, margin + side)
    named = (("above focus", depth), ("in focus", 0.0), ("below focus", -depth))
    for ax, (name, z) in zip(figure.subplots(1, 3), named, strict=True):
        image = psf.integrate_pixels(torch.tensor([[middle, middle, z]]))[0, crop, crop]
        ax.imshow(image.numpy(), cmap="gray")
        ax.set_title(f"{name}, z = {z:+.0f} nm" if z else name, fontsize=11)
        ax.set(xlabel="x", ylabel="y", xticks=[], yticks=[])


# --- beads that were not fitted ---


def _draw_precision(figure: SubFigure | Figure, evidence: Evidence) -> None:
    held_out = evidence.held_out
    assert held_out is not None
    axes = figure.subplots(2, 3, sharex=True)
    for axis, (top, bottom) in enumerate(axes.T):
        top.set_title(AXES[axis])
        _draw_bias(top, held_out, axis)
        _draw_spread(bottom, held_out, axis)
        for ax in (top, bottom):
            if evidence.usable is not None:
                ax.axvspan(*evidence.usable, color=GREEN, alpha=0.07, linewidth=0)
            ax.grid(alpha=0.25)
    for ax, label in zip(axes[:, 0], ("bias, nm", "spread, nm"), strict=True):
        ax.set_ylabel(label)
        ax.legend(fontsize=8, loc="upper center")


def _draw_bias(ax: Axes, held_out: HeldOut, axis: int) -> None:
    z, raw = held_out.z_nm.numpy(), held_out.error_nm[..., axis].mean(0).numpy()
    whole = held_out.bias_nm(smooth_nm=POOLED_NM)[:, axis].numpy()
    steady = held_out.steady().bias_nm(smooth_nm=POOLED_NM)[:, axis].numpy()
    ax.plot(z, raw, ".", color="0.7", markersize=3, label="mean of the beads")
    ax.plot(z, whole, color="0.45", linewidth=1, label="averaged over depth")
    ax.plot(z, steady, color=INK[axis], linewidth=2, label="without jitter")
    ax.axhline(0, color="black", linewidth=0.5)
    reach = max(0.75 * LARGEST_BIAS_NM[axis], 1.3 * float(np.quantile(np.abs(raw), 0.97)))
    ax.set_ylim(-reach, reach)


def _draw_spread(ax: Axes, held_out: HeldOut, axis: int) -> None:
    z = held_out.z_nm.numpy()
    spread = held_out.steady().spread_nm()[:, axis].numpy()
    bound = held_out.rms_bound_nm()[:, axis].numpy()
    ax.plot(z, spread, color=INK[axis], linewidth=2, label="spread of the beads")
    known = np.where(np.isfinite(bound), bound, np.nan)
    ax.plot(z, known, "--", color="black", linewidth=1.2, label="Cramér-Rao bound")
    tallest = 1.0
    if np.isfinite(bound).any():
        tallest = np.nanquantile(np.concatenate([spread, known]), 0.95)
    ax.set(xlabel="z, nm", ylim=(0, 1.5 * tallest))


# --- the PSF over depth ---


def _draw_depth(figure: SubFigure | Figure, evidence: Evidence) -> None:
    wobble_ax, jitter_ax = figure.subplots(1, 2)
    z = evidence.calibration.z_nm
    _draw_ways(wobble_ax, z, evidence.wobble_nm(z))
    wobble_ax.set(title="wobble of the PSF", ylabel="centroid, nm")
    wobble_ax.legend(fontsize=9, ncols=2)
    jitter = _jitter_of_stacks(evidence.calibration)
    _draw_ways(jitter_ax, z, jitter)
    jitter_ax.set(title="jitter of the stage", ylabel="jitter, nm")
    if jitter.shape[1]:
        jitter_ax.legend(fontsize=9, ncols=3)
    else:
        centre = {"transform": jitter_ax.transAxes, "ha": "center"}
        jitter_ax.text(0.5, 0.6, no_jitter(evidence), color="0.4", **centre)
    for ax in (wobble_ax, jitter_ax):
        ax.title.set_fontsize(11)


def _draw_ways(ax: Axes, z_nm: Tensor, lines: Tensor) -> None:
    """Draw lines (z, n) along x, y (and z) over depth; further stacks take the same colours."""
    for i, line in enumerate(lines.T.numpy()):
        label = AXES[i] if i < len(AXES) else None
        ax.plot(z_nm.numpy(), line, color=INK[i % len(AXES)], label=label, linewidth=1.2)
    reach = SMALLEST_REACH_NM
    if lines.numel():
        reach = max(reach, 1.2 * float(lines.abs().max()))
    ends = float(z_nm[0]), float(z_nm[-1])
    ax.set(xlabel="z, nm", xlim=ends, ylim=(-reach, reach))
    ax.grid(alpha=0.25)


def _jitter_of_stacks(calibration: PSFCalibration) -> Tensor:
    """(z, 3 stacks) nm; (z, 0) where no stage jittered."""
    if not bool(calibration.jitter_nm.any()):
        return torch.zeros(len(calibration.z_nm), 0)
    beads = zip(calibration.beads, calibration.jitter_nm, strict=True)
    of_stack = {bead.stack: jitter for bead, jitter in beads}
    return torch.cat([*of_stack.values()], 1)


# --- beads in the field ---


def _draw_field(figure: SubFigure | Figure, evidence: Evidence) -> None:
    places, light = figure.subplots(1, 2)
    _draw_places(places, evidence.calibration)
    _draw_light(light, evidence)
    for ax in (places, light):
        ax.title.set_fontsize(11)


def _draw_places(ax: Axes, calibration: PSFCalibration) -> None:
    used = [bead.centre_px for bead in calibration.beads]
    rejected = [spot.centre_px for spot in calibration.rejected]
    pixel_um = calibration.psf.pixel_size_nm / 1000
    centres_um = pixel_um * np.array([*used, *rejected])
    for number, place in enumerate(centres_um, 1):
        marker, ink = ("o", GREEN) if number <= len(used) else ("x", RED)
        ax.plot(*place, marker, color=ink, markersize=7)
        ax.annotate(str(number), place, xytext=(6, 5), textcoords="offset points", fontsize=8)
    ax.plot([], [], "o", color=GREEN, label="used")
    if rejected:
        ax.plot([], [], "x", color=RED, label="rejected")
    right, bottom = centres_um.max(0) + pixel_um * calibration.beads[0].photons.shape[-1]
    stacks = len(calibration.file.sources)
    title = "field" if stacks < 2 else f"field of {stacks} stacks, one upon the other"
    ax.set(xlabel="x, µm", ylabel="y, µm", xlim=(0, right), ylim=(bottom, 0))
    ax.set(aspect="equal", title=title)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="upper right")


def _draw_light(ax: Axes, evidence: Evidence) -> None:
    z = evidence.calibration.z_nm.numpy()
    for number, photons in enumerate(evidence.images.photons.numpy(), 1):
        ax.plot(z, photons, linewidth=1, label=str(number))
    ax.set(xlabel="z, nm", ylabel="photons", title="light of each bead", ylim=(0, None))
    ax.grid(alpha=0.25)
    if evidence.n_beads <= NAMED_BEADS:
        ax.legend(title="bead", fontsize=8, ncols=2, loc="lower center")


# --- the PSF over the field ---


@torch.no_grad()
def _draw_over_field(figure: SubFigure | Figure, evidence: Evidence) -> None:
    psf, side = evidence.psf, evidence.images.measured.shape[-1]
    assert psf.field_nm is not None
    (x0, x1), (y0, y1) = psf.field_nm
    places = [(x0, y0), (x1, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x0, y1), (x1, y1)]
    low, high = evidence.calibration.file.z_range_nm
    depths = (0.7 * low, 0.0, 0.7 * high)
    middle, margin = psf.patch_px / 2 * psf.pixel_size_nm, (psf.patch_px - side) // 2
    crop = slice(margin, margin + side)
    axes = figure.subplots(len(depths), len(places))
    for row, z in zip(axes, depths, strict=True):
        at = torch.tensor([[middle, middle, z]]).expand(len(places), 3)
        parameters = psf.parameters_at(torch.tensor([[x, y, z] for x, y in places]))
        images = psf.integrate_pixels(at, parameters)[:, crop, crop]
        row[0].set_ylabel(f"z = {z:.0f} nm", fontsize=11)
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(images.max()))
            ax.set(xticks=[], yticks=[])
    for ax, (x, y) in zip(axes[0], places, strict=True):
        ax.set_title(f"x {x / 1000:.0f}, y {y / 1000:.0f} µm", fontsize=11)


PICTURES = (
    Picture(
        title="Beads against the PSF",
        caption="A row is a depth; bead and PSF share its grey scale. Residuals are in standard "
        "deviations of the noise: the last column adds up all beads and neighbouring planes, and "
        "would be featureless if the PSF were perfect.",
        height=10.5,
        draw=_draw_crops,
    ),
    Picture(
        title="Which way is up",
        caption="The PSF by its z, x to the right and y down. It is so if the stage went up from "
        "plane to plane, or as it was stated; if the stage went the other way, above and below "
        "change places, which no image shows.",
        height=3.7,
        draw=_draw_direction,
        applies=lambda evidence: evidence.halfway_nm > 0,
    ),
    Picture(
        title="Beads that were not fitted",
        caption="Each bead was localized, plane by plane, with a PSF fitted to the others. Top: "
        "bias, with and without the stage's jitter. Bottom: spread against the Cramér-Rao bound, "
        f"which no method can beat. Averaged over {POOLED_NM:.0f} nm of depth but for dots. "
        "Shaded: the usable range.",
        height=6.0,
        draw=_draw_precision,
        applies=lambda evidence: evidence.held_out is not None,
    ),
    Picture(
        title="The PSF over depth",
        caption="Left: how far the centroid of the light lies from the emitter (the wobble, which "
        "the PSF contains). Right: how far the beads of each stack shifted together, as that is "
        "taken for the stage's: of one stack what is independent from plane to plane, of several "
        "what differs between them.",
        height=3.2,
        draw=_draw_depth,
    ),
    Picture(
        title="Beads in the field",
        caption="Numbers are those of the table of beads.",
        height=4.6,
        draw=_draw_field,
    ),
    Picture(
        title="The PSF over the field",
        caption="In the four corners of the field and in its middle, on one grey scale a row; the "
        "bead stack's upper left corner is the first.",
        height=6.0,
        draw=_draw_over_field,
        applies=lambda evidence: evidence.psf.field_nm is not None,
    ),
)
"""pictures in the order of the page"""
