"""The localizer: what it sees, and what its files keep."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from decode.models import load_model
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.optics.camera import Camera
from decode.optics.spline import SplinePSF

SMALL = NetworkConfig(frame_widths=(4, 6), sequence_widths=(4, 6), head_width=4)
SCMOS = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)


@pytest.fixture
def model() -> Localizer:
    torch.manual_seed(0)
    return Localizer(SMALL, {"psf_sigma_px": (0.8, 2.0)}).eval()


@pytest.fixture
def adu(rng: torch.Generator) -> torch.Tensor:
    return SCMOS.sample(torch.full((1, 5, 21, 18), 40.0), rng)


def logits(
    model: Localizer, adu: torch.Tensor, camera: Camera, sigma: float | torch.Tensor = 1.3
) -> torch.Tensor:
    with torch.no_grad():
        return model(adu, camera, model.context_map({"psf_sigma_px": sigma}), 100.0).logit


def test_the_posterior_has_the_frames_own_size(model: Localizer, adu: torch.Tensor) -> None:
    assert logits(model, adu, SCMOS).shape == (5, 21, 18)


def test_a_frame_depends_on_its_two_neighbours_alone(model: Localizer, adu: torch.Tensor) -> None:
    changed = adu.clone()
    changed[0, 4] += 50
    difference = (logits(model, changed, SCMOS) - logits(model, adu, SCMOS)).abs().amax((1, 2))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 0).all()


def test_gain_and_offset_make_no_difference(model: Localizer, adu: torch.Tensor) -> None:
    other = replace(SCMOS, baseline=400.0, e_per_adu=0.05)
    # the same photons; the finer steps of the other camera have a little less quantization noise
    same = logits(model, (adu - 100) * 10 + 400, other)
    torch.testing.assert_close(same, logits(model, adu, SCMOS), atol=0.05, rtol=0.05)


def test_maps_of_the_camera_and_of_the_context_reach_the_network(
    model: Localizer, adu: torch.Tensor
) -> None:
    noise = torch.full((21, 18), 1.5)
    uniform = logits(model, adu, replace(SCMOS, read_noise_e=noise))
    torch.testing.assert_close(uniform, logits(model, adu, SCMOS))
    noise[5, 7] = 30
    assert not torch.equal(logits(model, adu, replace(SCMOS, read_noise_e=noise)), uniform)
    sigma = torch.full((1, 21, 18), 1.3)
    torch.testing.assert_close(logits(model, adu, SCMOS, sigma), logits(model, adu, SCMOS))
    sigma[0, :, 9:] = 1.9
    assert not torch.equal(logits(model, adu, SCMOS, sigma), uniform)


def test_context_out_of_range_or_unknown_is_refused(model: Localizer) -> None:
    with pytest.raises(ValueError, match="outside the range"):
        model.context_map({"psf_sigma_px": 3.0})
    with pytest.raises(ValueError, match="missing or unknown"):
        model.context_map({"sigma": 1.0})


def test_photons_scale_with_the_excess_noise(model: Localizer, adu: torch.Tensor) -> None:
    """Frames of the same whitened counts: the network's photons are in units of the variance per
    photon."""
    context = model.context_map({"psf_sigma_px": 1.3})
    quiet = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=0.0, qe=1.0)
    half = replace(quiet, qe=0.5)
    with torch.no_grad():
        one, two = model(adu, quiet, context, 100.0), model(adu, half, context, 100.0)
    torch.testing.assert_close(two.photons, 2 * one.photons)
    torch.testing.assert_close(two.background, 2 * one.background)
    torch.testing.assert_close(two.offset_px, one.offset_px)


def test_a_saved_model_is_the_same_model(
    model: Localizer, adu: torch.Tensor, tmp_path: Path
) -> None:
    model.record = ModelRecord(minutes=3.5, config={"seed": 1}, others={"of_tomorrow": [1, 2]})
    model.save(tmp_path / "m.safetensors")
    again = Localizer.load(tmp_path / "m.safetensors")
    assert again.record == model.record
    assert again.context == model.context
    torch.testing.assert_close(logits(again, adu, SCMOS), logits(model, adu, SCMOS))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata()["sha256"] == model.sha256() == again.sha256()
    next(again.parameters()).data[..., 0] += 1
    assert again.sha256() != model.sha256()


@torch.no_grad()
def test_a_saved_model_takes_its_context_in_the_same_order(
    tmp_path: Path, adu: torch.Tensor
) -> None:
    model = Localizer(
        replace(SMALL, context_width=4), {"wavelength_px": (4.0, 8.0), "apodization": (-1.0, 1.0)}
    )
    for name, weight in model.named_parameters():
        if "modulation" in name:
            weight.normal_(std=0.3)
    model.save(tmp_path / "m.safetensors")
    again = Localizer.load(tmp_path / "m.safetensors")
    assert list(again.context) == list(model.context)
    told = {"apodization": 0.9, "wavelength_px": 5.0}
    found = [m(adu, SCMOS, m.context_map(told), 100.0).logit for m in (model.eval(), again)]
    torch.testing.assert_close(found[1], found[0])


def test_a_model_carries_its_psf_and_its_camera(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "m.safetensors"
    psf = SplinePSF(
        torch.rand(5, 9, 9, generator=rng), z_start_nm=-100.0, z_step_nm=50.0, pixel_size_nm=110.0
    )
    camera = replace(
        SCMOS, baseline=100 + torch.rand(6, 7, generator=rng), read_noise_e=torch.full((6, 7), 1.5)
    )
    Localizer(SMALL, {}, psf=psf, camera=camera).save(path)
    again = Localizer.load(path)
    xyz = torch.tensor([[540.0, 610.0, -35.0]])
    assert again.psf is not None
    assert torch.equal(again.psf.integrate_pixels(xyz), psf.integrate_pixels(xyz))
    assert again.psf.pixel_size_nm == 110.0
    assert again.camera is not None
    assert torch.equal(torch.as_tensor(again.camera.baseline), torch.as_tensor(camera.baseline))
    assert (again.camera.e_per_adu, again.camera.qe, again.camera.em_gain) == (0.5, 0.8, None)
    # the PSF is none of the weights that are trained
    assert {n for n, _ in again.named_parameters()} == {
        n for n, _ in Localizer(SMALL, {}).named_parameters()
    }

    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for name in ("psf.coefficients", "camera.baseline"):
        changed = tensors | {name: tensors[name] + 1}
        path.write_bytes(safetensors.torch.save(changed, metadata))
        with pytest.raises(ValueError, match="was changed after it was written"):
            Localizer.load(path)


def test_a_model_of_ranges_carries_neither(model: Localizer, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    for each in (Localizer.load(tmp_path / "m.safetensors"), load_model("gaussian-2d")):
        assert each.psf is None
        assert each.camera is None


def test_a_damaged_file_is_refused_in_one_sentence(model: Localizer, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model.save(path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 1
    for content, reason in (
        (bytes(changed), "was changed after it was written"),
        (whole[: len(whole) // 2], "it is damaged"),
        (b"PK not a model", "not a model file"),
        (
            whole.replace(b"decode-localizer-1", b"decode-localizer-9"),
            "no localizer of this version",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason) as caught:
            Localizer.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="decode models"):
        Localizer.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(
    model: Localizer, tmp_path: Path, value: float
) -> None:
    with torch.no_grad():
        model.head.weight[0, 0, 0, 0] = value
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"its weights head.weight hold NaN or infinite values"):
        Localizer.load(tmp_path / "m.safetensors")


def test_a_network_is_not_made_before_its_weights_are_there(
    model: Localizer, tmp_path: Path
) -> None:
    model.network = replace(SMALL, frame_widths=(10**6, 10**6))  # terabytes
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="its weights do not fit its network"):
        Localizer.load(tmp_path / "m.safetensors")


def test_a_model_inherits_what_another_has_learnt(model: Localizer, adu: torch.Tensor) -> None:
    heir = Localizer(replace(SMALL, axial=True), {}).eval()
    before = heir(adu, SCMOS, heir.context_map({}), 100.0)
    heir.inherit(model)
    with torch.no_grad():
        after = heir(adu, SCMOS, heir.context_map({}), 100.0)
    # the middle of the range of the context that only the other takes
    torch.testing.assert_close(after.logit, logits(model, adu, SCMOS, 1.4))
    assert not torch.allclose(before.logit, after.logit)
    assert after.z_nm is not None
    with pytest.raises(ValueError, match="another network"):
        Localizer(replace(SMALL, head_width=8), {}).inherit(model)


def test_no_molecule_lies_deeper_than_the_model_was_trained(adu: torch.Tensor) -> None:
    torch.manual_seed(1)
    model = Localizer(replace(SMALL, axial=True), {}).eval()
    torch.nn.init.normal_(model.out.weight, std=30.0)
    context = model.context_map({})
    free = model(adu, SCMOS, context, 120.0).z_nm
    assert free is not None
    model.record = ModelRecord(config={"pixel_size_nm": 100.0, "scene": {"z_nm": [-300.0, 500.0]}})
    bound = model(adu, SCMOS, context, 120.0).z_nm
    torch.testing.assert_close(bound, free.clamp(-360.0, 600.0))
    assert not torch.equal(bound, free)


def test_what_a_bad_pixel_reads_does_not_reach_the_network(
    model: Localizer, adu: torch.Tensor
) -> None:
    bad = torch.zeros(21, 18, dtype=torch.bool)
    bad[5, 7] = bad[12, :] = True
    camera = replace(SCMOS, bad=bad)
    stuck = torch.where(bad, 60000.0, adu)
    assert torch.equal(logits(model, stuck, camera), logits(model, adu, camera))
    # that it is bad does, if the model has learned what that means
    filled = SCMOS.to_photons(adu).where(~bad, camera.without_bad(SCMOS.to_photons(adu)))
    counts = filled / SCMOS.photons_per_adu + SCMOS.baseline
    torch.testing.assert_close(
        logits(model, adu, camera), logits(model, counts, SCMOS), rtol=0, atol=1e-5
    )
    knowing = copy.deepcopy(model)
    knowing.record = ModelRecord(config={"camera": {"bad_pixels": [0.0, 0.01]}})
    assert not torch.allclose(
        logits(knowing, adu, camera), logits(model, adu, camera), rtol=0, atol=1e-5
    )


def test_a_model_of_wider_ranges_inherits_what_the_context_means(adu: torch.Tensor) -> None:
    torch.manual_seed(1)
    told = replace(SMALL, context_width=6)
    narrow = Localizer(told, {"a": (0.0, 1.0), "b": (-2.0, 2.0)}).eval()
    for name, weight in narrow.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.3)
    wide = Localizer(told, {"a": (-1.0, 3.0), "b": (-2.0, 6.0)}).eval()
    wide.inherit(narrow)
    values = {"a": 0.8, "b": -0.7}
    with torch.no_grad():
        one, two = (m(adu, SCMOS, m.context_map(values), 100.0).logit for m in (narrow, wide))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)
