"""Plots of the figures of a table, and the figures themselves as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decode.atomic import atomic
from decode.quality.profile import Profile
from decode.quality.summary import Quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_quality"]

BLUE, GREY, RED = "#2b5f8a", "0.55", "#c43b3b"


def write_quality(quality: Quality, files: Sequence[Path]) -> None:
    """Write `quality.json` and a plot for each other file of `decode.outputs.quality_files`."""
    drawings: Mapping[str, Callable[[Figure], None]] = {
        "resolution": partial(_resolution, quality),
        "budget": partial(_budget, quality),
        "precision": partial(_precision, quality),
        "uncertainties": partial(_uncertainties, quality),
        "distributions": partial(_distributions, quality),
        "time": partial(_time, quality),
        "density": partial(_density, quality),
        **{f"line-{i}": partial(_line, p) for i, p in enumerate(quality.profiles, start=1)},
    }
    for path in files:
        with atomic(path) as temporary:
            if path.suffix == ".json":
                temporary.write_text(json.dumps(quality.as_dict(), indent=1))
            else:
                _draw(drawings[path.stem], temporary, path.suffix.removeprefix("."))


def _draw(drawing: Callable[[Figure], None], path: Path, kind: str) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # text stays text, and the same figures give the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "decode", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        drawing(figure)
        for ax in figure.axes:
            ax.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, format=kind, metadata=metadata)


def _nothing(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", wrap=True, transform=ax.transAxes)
    ax.set_axis_off()


def _resolution(quality: Quality, figure: Figure) -> None:
    ax = figure.subplots()
    curves = [c for c in (quality.resolution, *quality.shells) if c is not None]
    if not curves:
        return _nothing(ax, quality.unknown.get("resolution", ""))
    for curve, colour in zip(curves, (BLUE, "#2f7d4f", "#b06a16"), strict=False):
        ax.plot(curve.frequency, curve.correlation, color=colour, lw=1.2, label=curve.name)
        if curve.value_nm is not None:
            ax.plot(1 / curve.value_nm, curve.threshold, "o", ms=4, color=colour)
            ax.annotate(
                f"{curve.value_nm:.0f} nm",
                (1 / curve.value_nm, curve.threshold),
                xytext=(4, 5 + 9 * curves.index(curve)),
                textcoords="offset points",
                color=colour,
            )
    ax.axhline(curves[0].threshold, color=GREY, lw=0.8, ls="--")
    crossings = [1 / c.value_nm for c in curves if c.value_nm]
    ax.set_xlim(0, 2.2 * max(crossings) if crossings else None)
    ax.set_ylim(-0.1, 1.02)
    ax.set_xlabel("frequency (1/nm)")
    ax.set_ylabel("correlation of both halves")
    ax.legend(frameon=False)
    return None


def _budget(quality: Quality, figure: Figure) -> None:
    ax = figure.subplots()
    if quality.budget is None:
        return _nothing(ax, quality.unknown.get("budget", ""))
    parts = quality.budget.parts[::-1]
    sizes = [part.nm2 or 0.0 for part in parts]
    ax.barh(
        [part.cause for part in parts],
        sizes,
        xerr=[part.error_nm2 or 0.0 for part in parts],
        color=BLUE,
        height=0.6,
        error_kw={"lw": 0.8},
    )
    for i, part in enumerate(parts):
        if part.nm2 is None:
            ax.text(0, i, " unknown", va="center", color=GREY)
    ax.set_xlabel("part of the square of the resolution (nm²)")
    ax.set_title(quality.budget.comparison, fontsize=8, wrap=True)
    return None


def _precision(quality: Quality, figure: Figure) -> None:
    from matplotlib.ticker import ScalarFormatter

    ax = figure.subplots()
    found = quality.precision
    if found is None or found.law is None:
        return _nothing(ax, quality.unknown.get("precision", "too few pairs for a photon law"))
    law = found.law
    ax.errorbar(law.photons, law.sigma_nm, law.error_nm, fmt="o", ms=4, color=BLUE, label="NeNA")
    n = np.geomspace(min(law.photons), max(law.photons), 50)
    ax.plot(
        n,
        law.scale_nm * (n / 1000) ** -law.exponent,
        color=BLUE,
        lw=1,
        label=f"photons to the power -{law.exponent:.2f}",
    )
    if np.isfinite(found.stated_nm):
        ax.axhline(found.stated_nm, color=GREY, ls="--", lw=0.8, label="stated, rms")
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter())
    ax.set_xlabel("photons")
    ax.set_ylabel("precision (nm)")
    ax.legend(frameon=False)
    return None


def _uncertainties(quality: Quality, figure: Figure) -> None:
    ax = figure.subplots()
    found = quality.audit
    if found is None:
        return _nothing(ax, quality.unknown.get("audit", "the table does not tell"))
    parts = found.by_photons or (found,)
    photons = [part.photons for part in parts]
    for i, (axis, colour) in enumerate(zip("xyz", (BLUE, GREY, RED), strict=True)):
        ratio, error = ([column[i] for column in of] for of in found.columns)
        if np.isfinite(ratio).all():
            ax.errorbar(photons, ratio, error, fmt="o-", ms=4, lw=0.8, color=colour, label=axis)
    ax.axhline(1.0, color=GREY, ls="--", lw=0.8)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("photons")
    ax.set_ylabel("scatter over stated uncertainty")
    ax.set_title(found.sentence, fontsize=8, wrap=True)
    ax.legend(frameon=False)
    return None


def _distributions(quality: Quality, figure: Figure) -> None:
    found = quality.distributions
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure.set_size_inches(2.1 * columns, 1.7 * rows)
    axes = np.atleast_1d(np.asarray(figure.subplots(rows, columns), dtype=object)).ravel()
    for ax, each in zip(axes, found, strict=False):
        ax.stairs(each.counts, each.edges, fill=True, color=BLUE)
        ax.axvline(each.median, color=RED, lw=0.8)
        unit = f" ({each.unit})" if each.unit and each.unit != each.name else ""
        ax.set_xlabel(f"{each.name}{unit}")
        ax.set_yticks([])
    for ax in axes[len(found) :]:
        ax.set_axis_off()


def _time(quality: Quality, figure: Figure) -> None:
    course = quality.course
    above, below = figure.subplots(2, 1, sharex=True)
    per_frame, error = np.array(course.per_frame), np.array(course.error)
    above.fill_between(course.frame, per_frame - error, per_frame + error, color=BLUE, alpha=0.3)
    above.plot(course.frame, per_frame, color=BLUE, lw=1)
    above.set_ylim(bottom=0)
    above.set_ylabel("localizations\na frame")
    below.set_xlabel("frame")
    if quality.drift is None:
        return _nothing(below, "no structure tells the drift")
    path = quality.drift
    middle = (np.arange(len(path.path)) + 0.5) * quality.n_frames / len(path.path)
    for axis, colour in enumerate((RED, "#2f7d4f")):
        half = np.abs(path.first - path.second)[:, axis] / 2
        mean = (path.first + path.second)[:, axis] / 2
        below.errorbar(middle, mean, half, color=colour, lw=1, marker="o", ms=3, label="xy"[axis])
    below.set_ylabel("displacement\n(nm)")
    below.legend(frameon=False, ncols=2)
    return None


def _density(quality: Quality, figure: Figure) -> None:
    ax = figure.subplots()
    found = quality.density
    image = np.array(found.per_um2)
    height, width = (side * found.pixel_nm / 1e3 for side in image.shape)
    left, top = (o / 1e3 for o in found.origin_nm)
    figure.set_size_inches(5.2, 1.0 + 4.0 * height / max(width, 1e-9))
    shown = ax.imshow(
        image,
        extent=(left, left + width, top + height, top),
        cmap="magma",
        vmax=float(np.quantile(image, 0.995)) or None,
        interpolation="nearest",
    )
    figure.colorbar(shown, ax=ax, label="localizations per µm²")
    ax.set_xlabel("x (µm)")
    ax.set_ylabel("y (µm)")


def _line(profile: Profile, figure: Figure) -> None:
    ax = figure.subplots()
    ax.stairs(profile.counts, profile.edges, fill=True, color=BLUE, alpha=0.4)
    edges = np.array(profile.edges)
    ax.plot((edges[1:] + edges[:-1]) / 2, profile.model, color=RED, lw=1.2)
    ax.set_title(str(profile), fontsize=8)
    ax.set_xlabel("along the line (nm)")
    ax.set_ylabel("molecules")
