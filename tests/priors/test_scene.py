"""The prior over molecules and background has the moments it states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from decode.priors.scene import Scene

FIXED: dict[str, Any] = {
    "density_per_um2": (1.0, 1.0),
    "flux_photons": (1000.0, 1000.0),
    "flux_variation": (0.5, 0.5),
    "on_time_frames": (2.0, 2.0),
    "background_photons": (30.0, 30.0),
}


def test_density_flux_and_on_time_are_those_asked_for(rng: torch.Generator) -> None:
    n_movies, n_frames, shape = 200, 8, (32, 48)
    molecules = Scene(**FIXED).sample_emitters(n_movies, n_frames, shape, 100.0, rng)
    inside = ((molecules.xyz[:, 0] > 0) & (molecules.xyz[:, 0] < 4800)) & (
        (molecules.xyz[:, 1] > 0) & (molecules.xyz[:, 1] < 3200)
    )
    area = 4.8 * 3.2
    # what shines at once, counted by the light: flux 1000 times density times area in every frame
    light = torch.zeros(n_movies * n_frames).index_add(
        0, molecules.frame[inside], molecules.photons[inside]
    )
    assert float(light.mean()) == pytest.approx(1000 * area, rel=0.03)
    # stationary: the first frame is as bright as the last
    per_frame = light.view(n_movies, n_frames).mean(0)
    assert float(per_frame[0]) == pytest.approx(float(per_frame[-1]), rel=0.1)
    # a molecule on for a time t touches on average t + 1 frames
    rows_per_frame = float(inside.sum()) / (n_movies * n_frames)
    assert rows_per_frame == pytest.approx(area * (1 + 1 / 2.0), rel=0.05)


def test_first_and_last_frames_hold_a_part_of_the_flux(rng: torch.Generator) -> None:
    fixed = FIXED | {"flux_variation": (0.0, 0.0), "on_time_frames": (3.0, 3.0)}
    photons = Scene(**fixed).sample_emitters(50, 20, (32, 32), 100.0, rng).photons
    assert float(photons.max()) <= 1005  # the gamma distribution is kept from degenerating
    partial = photons < 990
    assert 0.3 < float(partial.float().mean()) < 0.7
    # parts of a frame are uniform where the molecule is on for long
    assert float(photons[partial].mean()) == pytest.approx(500, rel=0.1)


def test_filaments_crowd_the_molecules(rng: torch.Generator) -> None:
    def neighbours(filaments: float) -> float:
        scene = Scene(**FIXED, filaments=filaments)  # type: ignore[arg-type]
        molecules = scene.sample_emitters(100, 1, (64, 64), 100.0, rng)
        distance = torch.cdist(molecules.xyz[:, :2], molecules.xyz[:, :2])
        same = molecules.frame[:, None] == molecules.frame
        return float(((distance < 200) & same).sum() / len(molecules)) - 1

    assert neighbours(1.0) > 1.5 * neighbours(0.0)


def test_background_has_its_level_contrast_and_drift(rng: torch.Generator) -> None:
    scene = Scene(
        background_photons=(50.0, 50.0),
        background_contrast=(0.3, 0.3),
        background_drift=(-0.1, -0.1),
    )
    background = scene.sample_background(300, 5, (64, 64), rng)
    assert float(background[:, 0].log().mean()) == pytest.approx(
        torch.tensor(50.0).log().item(), abs=0.03
    )
    assert float(background[:, 0].log().std()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(background[:, 4], background[:, 0] * torch.exp(torch.tensor(-0.4)))
    # smooth: neighbours differ by far less than the field varies
    assert float(background[:, 0].log().diff(dim=-1).std()) < 0.1


def test_depths_fill_their_share(rng: torch.Generator) -> None:
    scene = Scene(**FIXED, z_nm=(-500.0, 500.0), z_share=(0.2, 0.2))  # type: ignore[arg-type]
    z = scene.sample_emitters(50, 2, (32, 32), 100.0, rng).xyz[:, 2]
    assert 90 < float(z.abs().max()) <= 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("density_per_um2", (3.0, 1.0)),
        ("flux_photons", (0.0, 5.0)),
        ("filaments", 1.5),
        ("background_photons", (-1.0, 2.0)),
    ],
)
def test_impossible_ranges_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Scene(**{field: value})  # type: ignore[arg-type]


def test_a_background_that_flickers_jumps_by_the_factor_and_keeps_its_shape(
    rng: torch.Generator,
) -> None:
    steady = {"background_photons": (50.0, 50.0), "background_drift": (0.0, 0.0)}
    scene = Scene(**steady, flicker=1.0, flicker_factor=(3.0, 3.0))
    background = scene.sample_background(400, 8, (6, 5), rng)
    level = background / background.amin(1, keepdim=True)
    torch.testing.assert_close(
        level, level.mean((2, 3), keepdim=True).expand_as(level), msg="one factor a frame"
    )
    jumps = level[:, :, 0, 0]
    highest = jumps.amax(1, keepdim=True)
    of_two_levels = ((jumps - 1).abs() < 1e-3) | ((jumps - highest).abs() < 1e-3)
    noisy = ~of_two_levels.all(1)
    assert 0.15 < noisy.float().mean() < 0.35, "a quarter is lamp noise"
    power = highest[~noisy, 0].log() / math.log(3)
    assert float(power.max()) < 1 + 1e-3, "up to the factor"
    # nearly all jump, by powers of the factor that are uniform between 0 and 1
    assert float(power.mean()) == pytest.approx(0.5, abs=0.08)
    assert float((power < 0.25).float().mean()) == pytest.approx(0.25, abs=0.1)
    still = Scene(**steady, flicker=0.0).sample_background(20, 8, (6, 5), rng)
    torch.testing.assert_close(still, still[:, :1].expand_as(still))
