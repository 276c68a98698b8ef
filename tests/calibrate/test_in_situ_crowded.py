"""The pupil from a movie in which few molecules stand alone."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

import decode.calibrate.in_situ as in_situ
from decode.io.cameras import CameraFile
from decode.io.movies import write_movie
from decode.io.psfs import PSFFile
from decode.optics.camera import Camera
from decode.optics.psf import render
from decode.optics.pupil import PupilPSF


def test_spots_are_smaller_where_few_stand_alone_in_the_whole_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psf = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        zernike_nm={(2, 2): 60.0},
        patch_px=31,
    )
    rng, n_frames = torch.Generator().manual_seed(1), 30
    frame = torch.arange(n_frames).repeat_interleave(12)
    xyz = 6400 * torch.rand(len(frame), 3, generator=rng)
    xyz[:, 2] = xyz[:, 2] / 16 - 200
    light = render(
        psf.tabulated((-300.0, 300.0)),
        frame=frame,
        xyz=xyz,
        photons=torch.full((len(frame),), 4000.0),
        n_frames=n_frames,
        shape=(64, 64),
    )
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5)
    write_movie(tmp_path / "movie.tif", camera.sample(light.detach() + 20, rng).numpy())
    seen: list[Tensor] = []

    def fit(spots: Tensor, **_: object) -> NoReturn:
        seen.append(spots)
        raise ValueError("seen")

    monkeypatch.setattr(in_situ, "fit_in_situ", fit)
    start = PSFFile(psf=psf, z_range_nm=(-300.0, 300.0))
    stated = CameraFile(camera=camera, pixel_size_nm=100.0)
    with pytest.raises(ValueError, match="seen"):
        in_situ.refine_in_situ(tmp_path / "movie.tif", stated, start)
    assert len(seen[0]) > 60
    assert seen[0].shape[-1] < psf.patch_px
