"""A recipe for training from the estimates of a movie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from decode.config import TrainConfig
from decode.estimation.frames import Estimate
from decode.estimation.scene import SceneEstimate
from decode.optics.psf import PSF
from decode.priors.psf import MeasuredPSF, PSFPrior
from decode.ranges import Range

__all__ = ["is_covered", "to_recipe"]

ESTIMATED = (
    "density_per_um2",
    "flux_photons",
    "flux_variation",
    "on_time_frames",
    "z_nm",
    "background_photons",
    "background_contrast",
    "background_drift",
)
"""ranges of a scene that a movie shows"""
AROUND = 1.5
"""factor by which a range extends beyond an interval, so that it covers other parts of the
sample"""
SIGMA_AROUND = 1.1
"""as `AROUND`, for the width of a PSF"""
HEADER = """\
# Estimated by `decode estimate` from {source}: each range brackets the estimate, whose 95 % \
interval is in
# brackets behind it.  Widen a range where you know better; then `decode train` this file.
"""
FILAMENTS = "fraction of movies with molecules along lines, which crowd; not estimated"
NETWORK = (
    "  frame_widths: [16, 32, 48]  # those of the shipped models, whose weights may be the start",
    "  sequence_widths: [32, 48, 64]  # as above",
    "  head_width: 32  # as above",
)
TRAINING = (
    "  validate_every: 400  # steps between checkpoints: little is lost when it is stopped",
    "  patience: 25  # validations without any gain after which it ends",
)
LEAST_CROWDED = 1.0
"""least upper end of the density, molecules per square micrometre: empty frames teach little"""
LITTLE_BLUR_NM = 40.0
"""blur of a movie relative to its beads that is always covered: focus drift, vibration, and
molecules that are smaller"""
CROWDED = 3.0
"""upper end of the density over that of the estimate: molecules crowd on structures, where the
density exceeds the mean over the field"""


def to_recipe(
    estimate: SceneEstimate,
    psf: PSF,
    *,
    psf_file: Path | str,
    camera_file: Path | str,
    source: str,
    z_range_nm: tuple[float, float] | None = None,
    description: str = "",
) -> str:
    """The text of a recipe for `decode train`, whose ranges bracket the estimates.

    Args:
        estimate: estimate of the movie's scene.
        psf: the PSF it was estimated with.
        psf_file, camera_file: paths of PSF and camera, as written into the recipe.
        source: name of the movie.
        z_range_nm: depths at which the PSF was measured; None: those that it covers.
        description: purpose of the model.
    """
    limits = psf.z_range_nm
    if limits is not None and z_range_nm is not None:
        limits = z_range_nm
    depth = _depth(estimate, limits)
    axial = depth is not None and estimate.psf_sigma_nm is None
    # frames that are smaller than an image of a molecule show it whole nowhere
    size = 32 if psf.patch_px <= 48 else 64
    lines = [
        *HEADER.format(source=source).splitlines(),
        "version: 1",
        f"description: {_quoted(description or f'movies like {source}')}",
        f"pixel_size_nm: {psf.pixel_size_nm:g}",
        "",
        "scene:",
        *_scene(estimate),
        *_z(estimate, depth),
        f"  filaments: 0.4  # {FILAMENTS}",
        "",
        "psf:",
        *_psf(estimate, psf, psf_file, limits),
        "",
        "camera:",
        f"  file: {_quoted(str(camera_file))}  # the movie's own camera",
        "",
        "network:",
        *NETWORK,
        f"  axial: {str(axial).lower()}  # {'predict z' if axial else 'no z from this PSF'}",
        "",
        "training:",
        f"  size_px: {size}  # side of a simulated frame",
        *TRAINING,
    ]
    return "\n".join(lines) + "\n"


def is_covered(estimate: SceneEstimate, recipe: TrainConfig) -> bool:
    """Whether a movie lies within the ranges of a recipe for the same PSF and camera.

    Args:
        estimate: what the movie shows.
        recipe: from another movie.
    """
    shown = estimate.scene()
    pairs = ((getattr(shown, name), getattr(recipe.scene, name)) for name in ESTIMATED)
    return all(_within(own, ranges) for own, ranges in pairs) and _has_width(estimate, recipe)


def _has_width(estimate: SceneEstimate, recipe: TrainConfig) -> bool:
    """Whether the recipe's PSF may be as wide as the movie's."""
    blur, sigma = estimate.psf_blur_nm, estimate.psf_sigma_nm
    if isinstance(recipe.psf, MeasuredPSF) and blur is not None:
        # a movie leaves its blur open, and a recipe doubts a wide one: the intervals must meet
        low, high = recipe.psf.blur_nm
        return blur.low <= high and low <= blur.high
    if isinstance(recipe.psf, PSFPrior) and sigma is not None:
        sigma_px = sigma.value / recipe.pixel_size_nm
        return _within((sigma_px, sigma_px), recipe.psf.sigma_px)
    return False


def _within(own: Range, ranges: Range) -> bool:
    return ranges[0] <= own[0] and own[1] <= ranges[1]


def _scene(estimate: SceneEstimate) -> Iterator[str]:
    """Ranges around the estimates, except the depth."""
    density, variation = estimate.density_per_um2, estimate.flux_variation
    contrast, drift = estimate.background_contrast, estimate.background_drift
    crowded = max(CROWDED * density.high, LEAST_CROWDED)
    fastest = max(abs(drift.low), abs(drift.high), 1e-4) * AROUND
    yield _estimated("density_per_um2", (0.0, crowded), "molecules on at once", density)
    yield _estimated(
        "flux_photons",
        _around(estimate.flux_photons),
        "mean of a movie, photons per frame fully on",
        estimate.flux_photons,
    )
    yield _estimated(
        "flux_variation",
        (max(0.05, variation.low / AROUND), min(1.0, variation.high * AROUND)),
        "standard deviation over mean, between molecules",
        variation,
    )
    yield _estimated(
        "on_time_frames",
        _around(estimate.on_time_frames),
        "mean time a molecule stays on",
        estimate.on_time_frames,
    )
    yield _estimated(
        "background_photons",
        _around(estimate.background_photons),
        "photons per pixel",
        estimate.background_photons,
    )
    yield _estimated(
        "background_contrast",
        (0.0, max(0.1, AROUND * contrast.high)),
        "unevenness over the field",
        contrast,
    )
    yield _estimated(
        "background_drift",
        (-fastest, fastest),
        "relative change from frame to frame",
        drift,
    )


def _depth(estimate: SceneEstimate, limits: Range | None) -> Range | None:
    """The depth to train for; None where the PSF is the same at every z."""
    low, high = estimate.z_low_nm, estimate.z_high_nm
    if limits is None or low is None or high is None:
        return None
    # a few molecules lie deeper than an even slab of the same light
    margin = 0.3 * (high.value - low.value)
    return (max(limits[0], low.low - margin), min(limits[1], high.high + margin))


def _z(estimate: SceneEstimate, depth: Range | None) -> Iterator[str]:
    if depth is None:
        yield _line("z_nm", (0.0, 0.0), "the PSF is the same at every depth")
        return
    ends = f"{estimate.z_low_nm} and {estimate.z_high_nm}"
    yield _line("z_nm", depth, f"depth; molecules seem to lie between {ends}")
    yield _line("z_share", (0.5, 1.0), "share of that depth a movie fills; not estimated")


def _psf(
    estimate: SceneEstimate,
    psf: PSF,
    psf_file: Path | str,
    limits: Range | None,
) -> Iterator[str]:
    """The PSF with its width: a Gaussian, or a file and its blur."""
    sigma, blur = estimate.psf_sigma_nm, estimate.psf_blur_nm
    if sigma is not None:
        low, high = sigma.low / SIGMA_AROUND, sigma.high * SIGMA_AROUND
        width = (low / psf.pixel_size_nm, high / psf.pixel_size_nm)
        yield _line("sigma_px", width, f"width in pixels; estimated {sigma} nm")
        if limits is not None:
            yield f"  depth_nm: {psf.settings()['depth_nm']:g}  # focal depth, as given"
        return
    yield f"  file: {_quoted(str(psf_file))}  # calibrated from beads"
    if blur is None:
        return
    # beads and movie come from one microscope: a wide blur is accepted only where the movie rules
    # out a small
    most = min(max(blur.high, 10.0), max(2 * blur.low, LITTLE_BLUR_NM))
    yield _line("blur_nm", (blur.low, most), f"Gaussian blur on top of it; estimated {blur} nm")


def _estimated(key: str, bounds: Range, what: str, estimate: Estimate) -> str:
    return _line(key, bounds, f"{what}; estimated {estimate}")


def _around(estimate: Estimate) -> Range:
    return (estimate.low / AROUND, estimate.high * AROUND)


def _line(key: str, bounds: Sequence[float], comment: str) -> str:
    # YAML 1.1 takes 1e-05 for a word: no exponents
    low, high = (f"{float(f'{v:.3g}'):.7f}".rstrip("0") for v in bounds)
    values = f"[{low}{'0' * low.endswith('.')}, {high}{'0' * high.endswith('.')}]"
    return f"  {key}: {values}  # {comment}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
