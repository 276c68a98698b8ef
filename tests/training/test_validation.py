"""What is said of a model is what it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from decode.config import TrainConfig
from decode.emitters import EmitterSet
from decode.metrics import score
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.posterior import SetPosterior
from decode.optics.camera import Camera
from decode.optics.fisher import cramer_rao_bound
from decode.optics.gaussian import GaussianPSF
from decode.priors.camera import CameraPrior
from decode.priors.psf import PSFPrior
from decode.priors.scene import Scene
from decode.training.validation import _slices, characterize, localize_isolated

CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.3, qe=0.8)
PSF = GaussianPSF(120.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=250.0)


class Oracle:
    """Knows where each molecule is, and errs by as much as it is told to; its sigmas are off by
    a factor."""

    def __init__(
        self, n: int, z_nm: float, error_nm: tuple[float, float, float], stated: float, axial: bool
    ) -> None:
        place = 1500 + 1000 * torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor(
            error_nm
        )
        self.estimate = torch.cat([place, torch.full((n, 1), z_nm)], 1) + noise
        self.sigma = stated * torch.tensor(error_nm)
        self.network = SimpleNamespace(axial=axial)
        self.done = 0

    def context_map(self, values: Mapping[str, float]) -> Tensor:
        assert not values
        return torch.zeros(1, 0, 1, 1)

    def __call__(
        self, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float
    ) -> SetPosterior:
        n, _, height, width = adu.shape
        maps = {name: torch.ones(n, 3, height, width) for name in ("photons", "z", "x", "y")}
        logit = torch.full((n, 3, height, width), -15.0)
        for i, (x, y, z) in enumerate(self.estimate[self.done : self.done + n].tolist()):
            column, row = int(x // 100), int(y // 100)
            logit[i, 1, row, column] = 15.0
            maps["x"][i, 1, row, column] = x / 100 - column - 0.5
            maps["y"][i, 1, row, column] = y / 100 - row - 0.5
            maps["z"][i, 1, row, column] = z
            maps["photons"][i, 1, row, column] = 1500.0
        self.done += n
        flat = {name: m.flatten(0, 1) for name, m in maps.items()}
        sigma = torch.ones_like(flat["x"])
        return SetPosterior(
            logit=logit.flatten(0, 1),
            offset_px=torch.stack([flat["x"], flat["y"]], 1),
            offset_sigma_px=torch.stack(
                [sigma * float(self.sigma[0]) / 100, sigma * float(self.sigma[1]) / 100], 1
            ),
            photons=flat["photons"],
            photons_sigma=flat["photons"],
            background=flat["photons"],
            z_nm=flat["z"] if self.network.axial else None,
            z_sigma_nm=sigma * float(self.sigma[2]) if self.network.axial else None,
            pixel_size_nm=pixel_size_nm,
        )


def isolated(
    error_nm: tuple[float, float, float], *, stated: float = 1.0, axial: bool = True, n: int = 1500
) -> Any:
    model = Oracle(n, 150.0, error_nm, stated, axial)
    return localize_isolated(
        cast(Localizer, model), CAMERA, PSF, photons=1000.0, background=10.0, z_nm=150.0, n=n
    )


def test_errors_and_sigmas_of_isolated_molecules_are_told_per_axis() -> None:
    error = (1.0, 2.0, 40.0)
    result = isolated(error)
    assert result.found == 1
    assert result.rmse_nm == pytest.approx(error, rel=0.06)
    assert result.bias_nm == pytest.approx((0, 0, 0), abs=4)
    # close to a border of its pixel, a molecule's sigma is smaller, as the other side is another
    # pixel's
    assert result.error_over_sigma == pytest.approx((1, 1, 1), rel=0.12)
    assert result.coverage == pytest.approx((0.95, 0.95, 0.95), abs=0.03)
    assert result.photons_ratio == pytest.approx(1.5)


def test_sigmas_too_small_by_half_are_found_out() -> None:
    result = isolated((1.0, 2.0, 40.0), stated=0.5)
    assert result.error_over_sigma == pytest.approx((2, 2, 2), rel=0.12)
    assert max(result.coverage) < 0.75


def test_the_bound_is_that_of_the_depth() -> None:
    result = isolated((1.0, 1.0, 1.0), n=64)
    xyz = torch.tensor([[2050.0, 2050.0, 150.0]])
    expected = cramer_rao_bound(PSF, CAMERA, xyz, torch.tensor([1000.0]), torch.tensor([10.0]))[
        0, :3
    ].tolist()
    assert result.bound_nm == pytest.approx(expected, rel=0.1)
    # nearer the focal plane of x: x is sharper than y
    assert result.bound_nm[0] < result.bound_nm[1]


def test_without_depth_z_is_left_out() -> None:
    result = isolated((1.0, 2.0, 40.0), axial=False, n=200)
    for values in (
        result.rmse_nm,
        result.bias_nm,
        result.bound_nm,
        result.error_over_sigma,
        result.coverage,
    ):
        assert math.isnan(values[2])
        assert math.isfinite(values[0] + values[1])


def table(rows: list[tuple[int, float, float, float]]) -> EmitterSet:
    frame, *xyz = zip(*rows, strict=True)
    return EmitterSet(
        frame=torch.tensor(frame),
        xyz=torch.tensor(xyz).T.contiguous(),
        photons=torch.full((len(rows),), 1000.0),
    )


def test_slices_of_depth_share_out_every_hit_miss_and_false_find() -> None:
    rng = torch.Generator().manual_seed(5)
    z = (torch.rand(300, generator=rng) * 1000 - 500).tolist()
    place = (torch.rand(300, 2, generator=rng) * 5000).tolist()
    truth = table(
        [(i // 3, x, y, depth) for i, ((x, y), depth) in enumerate(zip(place, z, strict=True))]
    )
    found = table(
        [
            (i // 3, x + 5, y, depth + 60)
            for i, ((x, y), depth) in enumerate(zip(place, z, strict=True))
            if i % 4
        ]
        + [(i, 2500.0, 2500.0, -490.0) for i in range(20)]
    )
    whole = score(truth, found, field_nm=(5000, 5000))
    parts = list(_slices(truth, found, (-500.0, 500.0), 4, two_d=False))
    assert [middle for middle, _, _ in parts] == [-375, -125, 125, 375]
    scores = [score(t, f, field_nm=(5000, 5000)) for _, t, f in parts]
    for name in ("tp", "fp", "fn"):
        assert sum(getattr(s, name) for s in scores) == getattr(whole, name)
    assert all(bool((t.xyz[:, 2] - middle).abs().max() <= 125) for middle, t, _ in parts)
    # a find belongs where its molecule is, be its own z across the border
    assert scores[0].fp >= 10
    assert scores[3].fp == 0


def test_characterize_tells_depths_apart() -> None:
    scene = Scene(z_nm=(-400.0, 400.0), flux_photons=(1000.0, 3000.0), density_per_um2=(0.0, 1.0))
    network = NetworkConfig(frame_widths=(4,), sequence_widths=(4,), head_width=4, axial=True)
    config = TrainConfig(scene=scene, network=network)
    model = config.localizer().eval()
    whole = characterize(model, config, torch.device("cpu"), n_movies=1)
    sliced = characterize(model, config, torch.device("cpu"), n_movies=1, depths=2)
    assert len(whole) < len(sliced) <= 2 * len(whole)
    assert {row["z_nm"] for row in sliced} == {-200.0, 200.0}
    assert all("z_nm" not in row and "rmse_axial_nm" in row for row in whole)


def test_a_recipe_of_many_defects_is_characterized_in_the_middle_of_its_ranges() -> None:
    """One PSF, one camera and a steady background, whatever share of the movies has others."""
    network = NetworkConfig(frame_widths=(4,), sequence_widths=(4,), head_width=4)
    config = TrainConfig(
        network=network,
        scene=Scene(flicker=1.0, density_per_um2=(0.0, 0.5)),
        psf=PSFPrior(pupil_fraction=1.0),
        camera=CameraPrior(bad_pixels=(0.1, 0.1), unmapped=1.0),
    )
    rows = characterize(config.localizer(), config, torch.device("cpu"), n_movies=1)
    assert {row["psf_sigma_px"] for row in rows} == {round(math.sqrt(0.8 * 2.0), 3)}
