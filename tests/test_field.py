"""A PSF that changes over the field, from its file to the molecules: simulated, told, trained
with and localized by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from decode.conditioning import KnownOptics
from decode.config import Optimization, TrainConfig
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import open_movie, write_movie
from decode.io.psfs import PSFFile, read_psf, write_psf
from decode.network.localizer import Localizer, NetworkConfig
from decode.optics.camera import Camera
from decode.optics.field import FieldSplinePSF
from decode.optics.spline import SplinePSF
from decode.priors.camera import MeasuredCamera
from decode.priors.psf import MeasuredPSF
from decode.priors.scene import Scene
from decode.training.loop import train
from decode.verbs.localize import localize_file
from decode.verbs.sweep import sweep

FIELD_NM = ((0.0, 7000.0), (0.0, 5000.0))
CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5), pixel_size_nm=100.0
)
SMALL = NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=8)


def spots(low: float, high: float) -> SplinePSF:
    """Widths along x and y in voxels."""
    _, y, x = np.meshgrid(np.arange(3), np.arange(11) - 5.0, np.arange(11) - 5.0, indexing="ij")
    stack = np.exp(-(x**2) / low - y**2 / high)
    return SplinePSF.from_stack(
        stack / stack.sum((1, 2), keepdims=True), z_start_nm=-300, z_step_nm=300, pixel_size_nm=100
    )


def field_psf() -> FieldSplinePSF:
    """Wider along x the further right, along y the further down."""
    middle = spots(4, 4)
    c = middle.coefficients.detach()
    changes = torch.stack(
        [spots(5, 4).coefficients.detach() - c, spots(4, 5).coefficients.detach() - c]
    )
    return FieldSplinePSF(middle, changes, shifts_nm=torch.zeros(2, 2), field_nm=FIELD_NM)


@pytest.fixture
def recipe(tmp_path: Path) -> TrainConfig:
    write_psf(tmp_path / "psf.h5", PSFFile(psf=field_psf(), z_range_nm=(-300.0, 300.0)))
    write_camera(tmp_path / "camera.yaml", CAMERA)
    return TrainConfig(
        psf=MeasuredPSF(file=str(tmp_path / "psf.h5")),
        camera=MeasuredCamera(file=str(tmp_path / "camera.yaml")),
        network=SMALL,
        scene=Scene(
            density_per_um2=(0.5, 1.0),
            flux_photons=(3000.0, 6000.0),
            background_photons=(5.0, 20.0),
        ),
        training=Optimization(
            steps=2, movies=2, frames=3, size_px=16, validate_every=2, warm_up_steps=1
        ),
    )


def test_a_file_holds_the_psf_and_states_the_field(tmp_path: Path) -> None:
    psf = field_psf()
    write_psf(tmp_path / "psf.h5", PSFFile(psf=psf, z_range_nm=(-300.0, 300.0)))
    again = read_psf(tmp_path / "psf.h5").psf
    assert isinstance(again, FieldSplinePSF)
    assert again.field_nm == FIELD_NM
    at, where = torch.tensor([[550.0, 560.0, 80.0]]), torch.tensor([[6000.0, 1000.0]])
    torch.testing.assert_close(again.integrate_pixels(at, where), psf.integrate_pixels(at, where))
    with h5py.File(tmp_path / "psf.h5") as h5:
        assert np.array(h5.attrs["field_px"]).tolist() == [[0, 70], [0, 50]]


def test_movies_are_drawn_all_over_the_field(recipe: TrainConfig) -> None:
    """Each at one place, on which the network is conditioned; a movie on the right has wider
    spots along x."""
    drawn = recipe.forward_model().sample(200, 1, (16, 16), torch.Generator().manual_seed(1))
    known = drawn.conditioning.values
    assert set(known) == {"field_x", "field_y"}
    for axis, (name, (low, high)) in enumerate(zip(("field_x", "field_y"), FIELD_NM, strict=True)):
        told = torch.as_tensor(known[name])
        assert torch.equal(told, drawn.psf_parameters[:, axis])
        assert low <= float(told.min()) < 0.1 * high
        assert 0.9 * high < float(told.max()) <= high
    model = recipe.localizer()
    assert model.context == {"field_x": FIELD_NM[0], "field_y": FIELD_NM[1]}
    context = model.context_map(known)
    assert context.shape == (200, 2, 1, 1)
    assert float(context.abs().max()) <= 1


def test_emitters_of_a_movie_have_the_psf_of_its_place(recipe: TrainConfig) -> None:
    forward = recipe.forward_model()
    drawn = forward.sample(2, 2, (16, 16), torch.Generator().manual_seed(2))
    assert isinstance(forward.psf, FieldSplinePSF)
    expected = drawn.background.clone()
    for movie, (x, y) in enumerate(drawn.psf_parameters.tolist()):
        own = forward.psf.at(x, y)
        of = drawn.emitters[drawn.emitters.frame // 2 == movie]
        for frame, xyz, photons in zip(of.frame, of.xyz, of.photons, strict=True):
            corner = torch.floor(xyz[:2] / 100).long() - own.patch_px // 2
            patch = (
                photons
                * own.integrate_pixels((xyz - torch.tensor([*(corner * 100).tolist(), 0]))[None])[0]
            )
            for j, row in enumerate(range(int(corner[1]), int(corner[1]) + own.patch_px)):
                for i, column in enumerate(range(int(corner[0]), int(corner[0]) + own.patch_px)):
                    if 0 <= row < 16 and 0 <= column < 16:
                        expected[movie, int(frame) % 2, row, column] += patch[j, i].detach()
    residual = (drawn.camera.to_photons(drawn.frames) - expected) / (expected + 2.5).sqrt()
    assert float(residual.square().mean()) == pytest.approx(1.0, abs=0.15)


def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What `context_map` is given."""
    given: list[dict[str, Tensor]] = []
    true = Localizer.context_map

    def spy(self: Localizer, values: Any) -> Tensor:
        given.append(dict(values))
        return true(self, values)

    monkeypatch.setattr(Localizer, "context_map", spy)
    return given


@pytest.mark.parametrize(
    ("shape", "remark"), [((50, 70), ""), ((40, 80), "70 x 50 pixels, the movie has 80 x 40")]
)
def test_pixels_are_told_where_in_the_field_they_lie(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: TrainConfig,
    shape: tuple[int, int],
    remark: str,
) -> None:
    """Also in a region, and beyond the field the nearest place in it."""
    model = recipe.localizer().eval()
    write_movie(tmp_path / "movie.tif", np.full((3, *shape), 140, np.uint16))
    given = seen(monkeypatch)
    with open_movie(tmp_path / "movie.tif") as movie:
        known = model.domain.conditioning(KnownOptics(pixel_size_nm=100.0, shape=shape))
        roi = slice(8, 24), slice(16, 32)
        list(sweep(movie, model, CAMERA.camera, pixel_size_nm=100.0, context=known.values, roi=roi))
    (maps,) = given
    x, y = maps["field_x"], maps["field_y"]
    assert tuple(x.shape) == tuple(y.shape) == shape
    assert float(x[0, 20]) == 2050
    assert float(y[10, 0]) == 1050
    assert float(x.max()) == min(7000, 100 * shape[1] - 50)
    assert remark in model.domain.remark(shape, 100.0)
    assert bool(remark) == bool(model.domain.remark(shape, 100.0))


def test_a_model_is_trained_and_localizes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: TrainConfig
) -> None:
    """A file of the model holds its PSF; a movie of another size is told apart in a sentence."""
    for progress in train(recipe, tmp_path / "model.safetensors", device="cpu", report_every=1):
        assert np.isfinite(progress.detail.loss)
    model = Localizer.load(tmp_path / "model.safetensors")
    assert isinstance(model.psf, FieldSplinePSF)
    rng = np.random.default_rng(3)
    write_movie(tmp_path / "movie.tif", rng.poisson(140, (4, 60, 90)).astype(np.uint16))
    given = seen(monkeypatch)
    done = localize_file(
        tmp_path / "movie.tif", model, tmp_path / "out", camera=CAMERA, device="cpu"
    )
    assert given[-1]["field_x"].shape == (60, 90)
    assert any("beyond" in remark or "border" in remark for remark in done.acquisition.estimates)
    with pytest.raises(ValueError, match="trained for pixels of 100 nm"):
        localize_file(
            tmp_path / "movie.tif", model, tmp_path / "out", camera=CAMERA, pixel_size_nm=160.0
        )
