"""Laws of a network whose context scales and shifts its features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from decode.network.localizer import Localizer, NetworkConfig
from decode.optics.camera import Camera

CAMERA = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0, qe=0.9)
NETWORK = NetworkConfig(
    frame_widths=(8, 12), sequence_widths=(8, 12), head_width=8, axial=True, context_width=16
)
CONTEXT = {"defocus": (0.0, 1.0), "astigmatism": (-2.0, 2.0)}


@pytest.fixture
def model() -> Localizer:
    torch.manual_seed(0)
    model = Localizer(NETWORK, CONTEXT)
    for name, weight in model.named_parameters():
        if "modulation" in name:  # zero in a network that was not trained
            torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def movies() -> torch.Tensor:
    return 100 + 50 * torch.rand(2, 3, 21, 23, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_conditioned_on_a_context_beforehand_it_answers_as_one_that_is_given_it(
    model: Localizer, movies: torch.Tensor
) -> None:
    context = model.context_map(
        {"defocus": torch.tensor([0.2, 0.9]), "astigmatism": torch.tensor([1.5, -1.0])}
    )
    told = model(movies, CAMERA, context, 100.0)
    for i in range(2):
        settled = model.conditioned_on(context[i : i + 1])
        assert not settled.context
        alone = settled(movies[i : i + 1], CAMERA, torch.zeros(1, 0, 1, 1), 100.0)
        torch.testing.assert_close(alone.logit, told.logit[3 * i : 3 * i + 3], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.z_nm, told.z_nm[3 * i : 3 * i + 3], atol=1e-3, rtol=1e-5)
    turned = model.conditioned_on(context[:1], z_sign=-1, z_shift_px=0.4)(
        movies[:1], CAMERA, torch.zeros(1, 0, 1, 1), 100.0
    )
    torch.testing.assert_close(turned.z_nm, 40 - told.z_nm[:3], atol=1e-3, rtol=1e-5)
    assert (
        told.logit[:3] - model(movies, CAMERA, context.flip(0), 100.0).logit[:3]
    ).abs().max() > 1e-3


@torch.no_grad()
def test_a_map_of_one_value_says_the_same_as_the_value(
    model: Localizer, movies: torch.Tensor
) -> None:
    number = model.context_map({"defocus": 0.3, "astigmatism": 1.0})
    spread = model.context_map(
        {"defocus": torch.full((21, 23), 0.3), "astigmatism": torch.full((21, 23), 1.0)}
    )
    assert spread.shape[2:] == (21, 23)
    told = model(movies, CAMERA, number, 100.0)
    mapped = model(movies, CAMERA, spread, 100.0)
    torch.testing.assert_close(mapped.logit, told.logit, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_specialist_starts_from_the_middle_of_the_context(
    model: Localizer, movies: torch.Tensor
) -> None:
    specialist = Localizer(replace(NETWORK, context_width=0), {})
    specialist.inherit(model)
    middle = model.context_map({"defocus": 0.5, "astigmatism": 0.0})
    told = model(movies, CAMERA, middle, 100.0)
    torch.testing.assert_close(
        specialist(movies, CAMERA, torch.zeros(1, 0, 1, 1), 100.0).logit,
        told.logit,
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_a_training_goes_on_from_a_model_that_is_told_the_same(
    model: Localizer, movies: torch.Tensor
) -> None:
    heir = Localizer(NETWORK, CONTEXT)
    heir.inherit(model)
    context = model.context_map({"defocus": 0.2, "astigmatism": 1.5})
    torch.testing.assert_close(
        heir(movies, CAMERA, context, 100.0).logit,
        model(movies, CAMERA, context, 100.0).logit,
        atol=0,
        rtol=0,
    )


def test_a_context_seen_beside_the_frames_cannot_be_given_beforehand() -> None:
    model = Localizer(replace(NETWORK, context_width=0), CONTEXT)
    with pytest.raises(ValueError, match="with the frames"):
        model.conditioned_on(torch.zeros(1, 2, 1, 1))
