"""The figures of a report, as tables."""

from __future__ import annotations

from torch import Tensor

from decode.calibrate.held_out import HeldOut, Range
from decode.calibrate.report.evidence import Evidence
from decode.optics.psf import Table

__all__ = ["no_jitter", "tables"]

AXES = ("x", "y", "z")


def tables(evidence: Evidence) -> list[Table]:
    """Precision, the calibration, smoothness tried, the PSF's own figures, and the beads."""
    calibration = evidence.calibration
    return [
        *_precision(evidence),
        _facts(evidence),
        *_tried("Smoothness tried", calibration.smoothness),
        *_tried("Smoothness along z tried", calibration.depth_smoothness),
        *evidence.psf.tables(),
        _beads(evidence),
    ]


def no_jitter(evidence: Evidence) -> str:
    """Why the stage shows no jitter, which is fitted for a free form and not for an optical
    model."""
    return "none beyond noise" if evidence.psf.free_form else "not fitted by this model"


def _facts(evidence: Evidence) -> Table:
    calibration, images = evidence.calibration, evidence.images
    facts, noise = calibration.file, images.noise
    low, high = facts.z_range_nm
    rows = (
        ("beads used, rejected", f"{evidence.n_beads}, {len(calibration.rejected)}"),
        ("depth of the stack", f"{low:.0f} to {high:.0f} nm"),
        ("distance of planes", f"{facts.z_step_nm:g} nm"),
        ("pixel size", f"{evidence.psf.pixel_size_nm:g} nm"),
        ("light of a bead in a plane", f"{float(images.photons.mean()):.0f} photons"),
        ("background", f"{float(calibration.background.mean()):.2f} photons per pixel"),
        ("jitter of the stage in x, y, z", _jitter(evidence)),
        ("deviance, with the noise of the camera file", f"{calibration.deviance:.3f}"),
        ("the same, with the noise between planes", f"{images.misfit:.3f}"),
        ("variance of the noise between planes", f"{noise.excess:.2f} photons + {noise.floor:.1f}"),
        ("x = y = 0 of the PSF", facts.origin or "not stated"),
        ("z = 0 of the PSF", "the plane in focus; positive as the stage's z"),
        ("direction of the stage", facts.z_direction),
    )
    return Table("The calibration", (), rows)


def _jitter(evidence: Evidence) -> str:
    rms = evidence.jitter_rms_nm.tolist()
    if not any(rms):
        return no_jitter(evidence)
    return ", ".join(f"{value:.1f}" for value in rms) + " nm rms"


def _tried(caption: str, deviances: dict[float, float]) -> list[Table]:
    if not deviances:
        return []
    chosen = min(deviances, key=lambda smoothness: deviances[smoothness])
    mark = {chosen: "chosen"}
    rows = tuple(
        (f"{smoothness:g}", f"{deviance:.4f}", mark.get(smoothness, ""))
        for smoothness, deviance in sorted(deviances.items())
    )
    return [Table(caption, ("smoothness", "deviance of held-out beads", ""), rows)]


def _precision(evidence: Evidence) -> list[Table]:
    held_out = evidence.held_out
    if held_out is None:
        return []
    where = "all depths with a bound"
    use = held_out.rms_bound_nm().isfinite().all(1)
    if evidence.usable is not None:
        where = "the usable range"
        use = held_out.inside(evidence.usable)
    if not bool(use.any()):
        return []
    low, high = (float(z) for z in held_out.z_nm[use][[0, -1]])
    caption = f"Beads that were not fitted, over {where}: {Range(low, high)}"
    return [Table(caption, ("", *AXES), tuple(_precision_rows(held_out, use)))]


def _precision_rows(held_out: HeldOut, use: Tensor) -> list[tuple[str, ...]]:
    """Rows over the planes in `use` (z,), with the stage's jitter and, where it matters,
    without."""
    whole, lost = held_out.among(use).summary(), held_out.among(use).lost()
    figures = {
        "bias, nm rms over z": whole["bias_nm"],
        "error, nm rms": whole["rmse_nm"],
        "Cramér-Rao bound, nm rms": whole["bound_nm"],
        "error over bound": whole["rmse_over_bound"],
    }
    if bool(held_out.jitter_nm.any()) or bool(lost.any()):
        steady = held_out.steady().among(use).summary()
        figures |= {
            "bias without jitter and other depths, nm rms over z": steady["bias_nm"],
            "error without jitter and other depths, nm rms": steady["rmse_nm"],
            "error without jitter and other depths over bound": steady["rmse_over_bound"],
        }
    rows = [(name, *(f"{value:.2f}" for value in values)) for name, values in figures.items()]
    found_elsewhere = f"{int(lost.sum())} of {lost.numel()}"
    return [*rows, ("images found at another depth", "", "", found_elsewhere)]


def _beads(evidence: Evidence) -> Table:
    used = [_used_bead(evidence, i, error) for i, error in enumerate(_errors(evidence))]
    rejected = [
        (str(number), str(spot.stack + 1), _place(spot.centre_px), "", "", "", "", spot.reason)
        for number, spot in enumerate(evidence.calibration.rejected, len(used) + 1)
    ]
    columns = (
        "bead",
        "stack",
        "x, y, px",
        "photons",
        "background",
        "height, nm",
        "error in x, y, z, nm",
        "used, or why not",
    )
    return Table("Beads", columns, (*used, *rejected))


def _used_bead(evidence: Evidence, i: int, error: str) -> tuple[str, ...]:
    calibration = evidence.calibration
    bead = calibration.beads[i]
    return (
        f"{i + 1}",
        f"{bead.stack + 1}",
        _place(bead.centre_px),
        f"{float(evidence.images.photons[i].mean()):.0f}",
        f"{float(calibration.background[i]):.1f}",
        f"{float(calibration.xyz[i, 2]):z.1f}",
        error,
        "used",
    )


def _place(centre_px: tuple[float, float]) -> str:
    x, y = centre_px
    return f"{x:.1f}, {y:.1f}"


def _errors(evidence: Evidence) -> list[str]:
    """Rms error of each bead over usable depths, without the stage's jitter; none for a single
    bead."""
    if evidence.held_out is None:
        return [""] * evidence.n_beads
    steady = evidence.steady_in_use or evidence.held_out.steady()
    rms = steady.error_nm.square().mean(1).sqrt()
    return [", ".join(f"{value:.1f}" for value in bead) for bead in rms.tolist()]
