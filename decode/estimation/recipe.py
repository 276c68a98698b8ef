"""A recipe for training, from what a movie shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decode.estimation.frames import Estimate
from decode.estimation.scene import SceneEstimate
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF

__all__ = ["to_recipe"]

AROUND = 1.5
"""how far beyond an interval a range reaches, as a factor: other parts of the sample are learnt
too"""
NETWORK = (
    "  frame_widths: [16, 32, 48]  # those of the shipped models, whose weights may be the start",
    "  sequence_widths: [32, 48, 64]  # as above",
    "  head_width: 32  # as above",
)
LEAST_CROWDED = 1.0
"""densest scenes of a sparse movie, molecules per square micrometre: empty frames teach little"""
LITTLE_BLUR_NM = 40.0
"""blur of a movie against its beads that wants no proof: focus drift, vibration, and molecules that
are smaller"""
CROWDED = 3.0
"""densest scenes, over the density's upper end: molecules crowd on structures, and the mean over
the field hides it"""


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
    """The text of a recipe for `decode train`, every range of which brackets what was estimated.

    Args:
        estimate: what the movie shows.
        psf: the PSF it was estimated with.
        psf_file, camera_file: where PSF and camera lie, as the recipe shall say it.
        source: name of the movie.
        z_range_nm: depth in which the PSF was measured; None: what it covers.
        description: what the model is good for.
    """
    e = estimate
    limits = psf.z_range_nm
    if limits is not None and z_range_nm is not None:
        limits = z_range_nm
    drift = max(abs(e.background_drift.low), abs(e.background_drift.high), 1e-4) * AROUND
    scene = [
        (
            "density_per_um2",
            (0.0, max(CROWDED * e.density_per_um2.high, LEAST_CROWDED)),
            "molecules on at once",
            e.density_per_um2,
        ),
        ("flux_photons", _around(e.flux_photons), "mean of a movie, photons per frame fully on", e.flux_photons),
        (
            "flux_variation",
            (max(0.05, e.flux_variation.low / AROUND), min(1.0, e.flux_variation.high * AROUND)),
            "standard deviation over mean, between molecules",
            e.flux_variation,
        ),
        ("on_time_frames", _around(e.on_time_frames), "mean time a molecule stays on", e.on_time_frames),
        ("background_photons", _around(e.background_photons), "photons per pixel", e.background_photons),
        (
            "background_contrast",
            (0.0, max(0.1, AROUND * e.background_contrast.high)),
            "unevenness over the field",
            e.background_contrast,
        ),
        ("background_drift", (-drift, drift), "relative change from frame to frame", e.background_drift),
    ]
    lines = [
        f"# Estimated by `decode estimate` from {source}: each range brackets the estimate, whose 95 % interval is in",
        "# brackets behind it.  Widen a range where you know better; then `decode train` this file.",
        "version: 1",
        f"description: {_quoted(description or f'movies like {source}')}",
        f"pixel_size_nm: {psf.pixel_size_nm:g}",
        "",
        "scene:",
        *(_line(key, bounds, f"{what}; estimated {estimated}") for key, bounds, what, estimated in scene),
    ]
    if limits is None or e.z_low_nm is None or e.z_high_nm is None:
        flat = True
        lines += [_line("z_nm", (0.0, 0.0), "the PSF is the same at every depth")]
    else:
        flat = False
        # a few molecules lie deeper than an even slab of the same light
        margin = 0.3 * (e.z_high_nm.value - e.z_low_nm.value)
        depth = (max(limits[0], e.z_low_nm.low - margin), min(limits[1], e.z_high_nm.high + margin))
        lines += [
            _line("z_nm", depth, f"depth; molecules seem to lie between {e.z_low_nm} and {e.z_high_nm}"),
            _line("z_share", (0.5, 1.0), "share of that depth a movie fills; not estimated"),
        ]
    lines += [
        "  filaments: 0.4  # fraction of movies with molecules along lines, which crowd; not estimated",
        "",
        "psf:",
    ]
    if isinstance(psf, GaussianPSF):
        assert e.psf_sigma_nm is not None
        width = tuple(v / psf.pixel_size_nm for v in (e.psf_sigma_nm.low / 1.1, e.psf_sigma_nm.high * 1.1))
        lines += [_line("sigma_px", width, f"width in pixels; estimated {e.psf_sigma_nm} nm")]
        if limits is not None:
            lines += [f"  depth_nm: {float(psf.depth_nm.detach()):g}  # focal depth, as given"]
    else:
        lines += [f"  file: {_quoted(str(psf_file))}  # calibrated from beads"]
        if e.psf_blur_nm is not None:
            what = f"Gaussian blur on top of it; estimated {e.psf_blur_nm} nm"
            # beads and movie come from one microscope: a wide blur is believed only where the movie
            # rules out a small
            most = min(max(e.psf_blur_nm.high, 10.0), max(2 * e.psf_blur_nm.low, LITTLE_BLUR_NM))
            lines += [_line("blur_nm", (e.psf_blur_nm.low, most), what)]
    axial = not flat and e.psf_sigma_nm is None
    # frames that are smaller than an image of a molecule show it whole nowhere
    size = 32 if psf.patch_px <= 48 else 64
    lines += [
        "",
        "camera:",
        f"  file: {_quoted(str(camera_file))}  # the movie's own camera",
        "",
        "network:",
        *NETWORK,
        f"  axial: {str(axial).lower()}  # {'predict z' if axial else 'the PSF does not tell z'}",
        "",
        "training:",
        f"  size_px: {size}  # side of a simulated frame",
    ]
    return "\n".join(lines) + "\n"


def _around(estimate: Estimate) -> tuple[float, float]:
    return (estimate.low / AROUND, estimate.high * AROUND)


def _line(key: str, bounds: Sequence[float], comment: str) -> str:
    # YAML 1.1 takes 1e-05 for a word: no exponents
    low, high = (f"{float(f'{v:.3g}'):.7f}".rstrip("0") for v in bounds)
    values = f"[{low}{'0' * low.endswith('.')}, {high}{'0' * high.endswith('.')}]"
    return f"  {key}: {values}  # {comment}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
