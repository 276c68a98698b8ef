"""However the stage went through the planes: told so, the PSF is the same; not told, the cause
is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from decode.calibrate.psf import fit_psf
from decode.calibrate.scan import Scan, check_scan, read_depths
from decode.io.cameras import CameraFile
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF

CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.6, qe=0.8), pixel_size_nm=100.0
)
UPWARDS = torch.arange(-500.0, 501.0, 100.0)
SIDE = 21


def recorded(z: Tensor, gap_nm: float = 180.0) -> Tensor:
    """(frame, y, x) ADU of a bead, each frame at its z."""
    psf = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=350.0, gap_nm=gap_nm, patch_px=SIDE)
    middle = torch.full_like(z, SIDE * 50.0)
    light = 6000 * psf.integrate_pixels(torch.stack([middle, middle, z], 1)).detach() + 8
    return CAMERA.camera.sample(light, torch.Generator().manual_seed(1))


def photons(z: Tensor, gap_nm: float = 180.0) -> Tensor:
    """(bead, frame, y, x)"""
    return CAMERA.camera.to_photons(recorded(z, gap_nm))[None]


@pytest.mark.parametrize(
    ("z", "scan"),
    [
        (UPWARDS.flip(0), Scan(downwards=True)),
        (UPWARDS.repeat_interleave(3), Scan(frames_per_plane=3)),
        (UPWARDS.flip(0).repeat_interleave(2), Scan(frames_per_plane=2, downwards=True)),
        (
            torch.cat([UPWARDS, UPWARDS.flip(0)]),
            Scan(z_nm=tuple(torch.cat([UPWARDS, UPWARDS.flip(0)]).tolist())),
        ),
    ],
)
def test_the_order_of_the_planes_does_not_matter_when_it_is_told(
    z: Tensor, scan: Scan, tmp_path: Path
) -> None:
    paths = [tmp_path / "upwards.tif", tmp_path / "other.tif"]
    for path, depth in zip(paths, (UPWARDS, z), strict=True):
        tifffile.imwrite(path, recorded(depth).numpy().astype(np.uint16), photometric="minisblack")
    step = None if scan.z_nm else 100.0
    options = {"model": "gaussian", "patch_px": 15}
    upwards, other = (
        fit_psf([path], CAMERA, z_step_nm=s, scan=how, **options).psf  # type: ignore[arg-type]
        for path, s, how in zip(paths, (100.0, step), (None, scan), strict=True)
    )
    at = torch.tensor([[750.0, 750.0, depth] for depth in (-300.0, 0.0, 300.0)])
    images = [psf.integrate_pixels(at).detach() for psf in (upwards, other)]
    torch.testing.assert_close(images[1], images[0], atol=0.003, rtol=0)
    # the other way round, rows would be columns
    assert float((images[0][0] - images[0][0].T).abs().max()) > 0.01


def test_a_sum_of_frames_has_the_noise_of_its_camera() -> None:
    light = torch.full((40_000,), 30.0)
    frames = torch.stack(
        [CAMERA.camera.sample(light, torch.Generator().manual_seed(i)) for i in range(4)]
    )
    camera = CAMERA.camera.of_sum(4)
    found = camera.to_photons(frames.sum(0))
    assert float(found.mean()) == pytest.approx(120, rel=0.01)
    expected = camera.excess_factor * 120 / 0.8 + float(camera.noise_floor)
    assert float(found.var()) == pytest.approx(expected, rel=0.03)


def test_focus_is_the_plane_that_was_told_also_downwards(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "beads.tif", recorded(UPWARDS.flip(0)).numpy().astype(np.uint16))
    found = fit_psf(
        [tmp_path / "beads.tif"],
        CAMERA,
        z_step_nm=100.0,
        z_focus=2,
        scan=Scan(downwards=True),
        model="gaussian",
        patch_px=15,
    )
    # the third of the planes from above
    torch.testing.assert_close(found.z_nm, torch.arange(-800.0, 201.0, 100.0))


@pytest.mark.parametrize(
    ("z", "cause"),
    [
        (UPWARDS.repeat_interleave(5), "every 5 frames .* --frames-per-plane 5"),
        (UPWARDS.repeat_interleave(2), "every 2 frames .* --frames-per-plane 2"),
        (UPWARDS.repeat(3), "3 times through the same 11 planes.*--z-of-frames"),
        # the way down is a second way up where the PSF is the same above and below focus
        (torch.cat([UPWARDS, UPWARDS.flip(0)]), "(up and down|2 times).*--z-of-frames"),
    ],
)
@pytest.mark.parametrize("gap_nm", [0.0, 180.0])
def test_planes_that_come_again_are_named(z: Tensor, cause: str, gap_nm: float) -> None:
    with pytest.raises(ValueError, match=cause):
        check_scan(photons(z, gap_nm))


@pytest.mark.parametrize("gap_nm", [0.0, 180.0])
@pytest.mark.parametrize("step_nm", [10.0, 50.0, 100.0])
def test_a_single_pass_is_let_through(gap_nm: float, step_nm: float) -> None:
    for reach in (400.0, 800.0):
        check_scan(photons(torch.arange(-reach, reach + 1, step_nm), gap_nm))
        check_scan(photons(torch.arange(0, reach + 1, step_nm), gap_nm))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0\n100\n200\nthree\n400\n", "three"),
        ("0\n100\n200\n", "has 3 planes"),
        ("0\n100\n200\n300\n310\n400\n", "10 to 100 nm apart"),
        ("0\n100\nnan\n300\n400\n500\n600\n", "planes"),
    ],
)
def test_depths_that_make_no_planes_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_depths(tmp_path / "z.txt")


@pytest.mark.parametrize(
    ("scan", "step", "sentence"),
    [
        (Scan(frames_per_plane=4), 100.0, "--frames-per-plane 4 does not divide the 11 frames"),
        (Scan(frames_per_plane=11), 100.0, "the stack has 1 planes"),
        (Scan(z_nm=tuple(range(0, 1000, 100))), None, "z of 10 frames are given, the stack has 11"),
        (Scan(z_nm=tuple(range(0, 1100, 100))), 100.0, "leave --z-step and --z-focus out"),
    ],
)
def test_a_scan_that_does_not_fit_the_stack_is_refused(
    scan: Scan, step: float | None, sentence: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "beads.tif", recorded(UPWARDS).numpy().astype(np.uint16))
    with pytest.raises(ValueError, match=sentence):
        fit_psf(
            [tmp_path / "beads.tif"],
            CAMERA,
            z_step_nm=step,
            scan=scan,
            model="gaussian",
            patch_px=15,
        )
    with pytest.raises(ValueError, match="is given"):
        Scan(frames_per_plane=2, z_nm=(1.0, 2.0))
    with pytest.raises(ValueError, match="must be 1 or more"):
        Scan(frames_per_plane=0)
