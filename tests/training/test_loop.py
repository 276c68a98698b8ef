"""Training: it learns, resumes bit for bit, survives a bad step and says why it stops."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from decode.config import Optimization, TrainConfig, to_mapping
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import write_movie
from decode.io.psfs import PSFFile, write_psf
from decode.models import load_model
from decode.network.localizer import Localizer, NetworkConfig
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.priors.camera import MeasuredCamera
from decode.priors.psf import MeasuredPSF, PSFPrior
from decode.priors.pupils import PupilPrior
from decode.priors.scene import Scene
from decode.training.course import MAX_EFFICIENCY_DROP, Course, TrainingError
from decode.training.learner import counted, loss_of
from decode.training.loop import TrainingReport, train
from decode.training.processes import Processes
from decode.verbs.localize import localize_file

TINY = TrainConfig(
    seed=3,
    network=NetworkConfig(frame_widths=(8, 12), sequence_widths=(8, 12), head_width=8),
    scene=Scene(
        density_per_um2=(0.5, 1.0), flux_photons=(3000.0, 6000.0), background_photons=(5.0, 20.0)
    ),
    training=Optimization(
        steps=8, movies=2, frames=3, size_px=16, validate_every=4, warm_up_steps=2
    ),
)


def run(
    config: TrainConfig, out: Path, stop_at: int | None = None, **options: Any
) -> list[TrainingReport]:
    reports = []
    for progress in train(config, out, device="cpu", report_every=4, **options):
        reports.append(progress.detail)
        if progress.detail.step == stop_at:
            break
    return reports


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = replace(TINY, training=replace(TINY.training, optimizer=optimizer))
    run(config, tmp_path / "whole.safetensors")
    run(config, tmp_path / "parts.safetensors", stop_at=4)
    rest = run(config, tmp_path / "parts.safetensors", resume=True)
    assert [r.step for r in rest] == [8]
    whole, parts = (Localizer.load(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_range_of_one_value_trains(tmp_path: Path) -> None:
    alike = replace(TINY, psf=PSFPrior(sigma_px=(1.3, 1.3)))
    assert all(math.isfinite(report.loss) for report in run(alike, tmp_path / "m.safetensors"))
    model = Localizer.load(tmp_path / "m.safetensors")
    assert model.context_map({"psf_sigma_px": 1.32}) == 0, "widths are known to some percent"
    with pytest.raises(ValueError, match="outside the range"):
        model.context_map({"psf_sigma_px": 1.5})


def test_ranges_of_one_value_train_whatever_the_psf(tmp_path: Path) -> None:
    known = PupilPrior(oblique_waves=0.0, spherical_waves=0.0, others_waves=0.0, blur_px=(0.5, 0.5))
    config = replace(TINY, psf=known, network=replace(TINY.network, axial=True, context_width=4))
    plan = replace(TINY.training, steps=1, validate_every=1, warm_up_steps=0)
    assert all(
        math.isfinite(report.loss)
        for report in run(replace(config, training=plan), tmp_path / "m.safetensors")
    )


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_no_time_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes is asked for"):
        run(TINY, tmp_path / "m.safetensors", minutes=minutes)
    assert not list(tmp_path.iterdir())


def test_resuming_a_training_that_has_ended_writes_its_model_again(tmp_path: Path) -> None:
    """A stop between the last checkpoint and the model must not cost the model."""
    out = tmp_path / "m.safetensors"
    last = run(TINY, out)[-1]
    before = Localizer.load(out)
    out.unlink()
    (progress,) = train(TINY, out, device="cpu", resume=True)
    again = progress.detail
    assert (again.step, progress.fraction) == (last.step, 1)
    assert repr(again.validation) == repr(last.validation)  # which holds NaN
    assert again.remarks[0].startswith("the training had ended before")
    assert again.remarks[1:] == last.remarks
    after = Localizer.load(out)
    assert repr(after.record) == repr(before.record)
    assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))


def test_what_a_diverging_loss_is_measured_by_survives_a_stop() -> None:
    course = Course(plan=TINY.training)
    assert not any(course.diverged(loss) for loss in (5.0, 4.0, 3.0))
    resumed = Course(plan=TINY.training, **json.loads(json.dumps(course.state())))
    assert resumed.diverged(26.0)
    assert not resumed.diverged(24.0)


def test_the_record_says_how_the_model_was_made(tmp_path: Path) -> None:
    reports = run(TINY, tmp_path / "m.safetensors", log_dir=tmp_path / "log")
    record = json.loads((tmp_path / "m.json").read_text())
    assert record == Localizer.load(tmp_path / "m.safetensors").record.to_json()
    assert record["config"]["seed"] == 3
    assert record["steps"] == 8
    assert [v["step"] for v in record["validation"]] == [4, 8]
    assert record["hardware"]
    assert any((tmp_path / "log").iterdir()), "TensorBoard's files"
    assert 0 < reports[-1].simulation_share < 1


def test_the_model_keeps_the_psf_and_the_camera_of_its_recipe(tmp_path: Path) -> None:
    psf = GaussianPSF(130.0, pixel_size_nm=110.0, depth_nm=400.0, gap_nm=200.0)
    camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=torch.full((60, 64), 1.5), qe=0.8)
    write_psf(tmp_path / "psf.h5", PSFFile(psf=psf, z_range_nm=(-600.0, 600.0)))
    write_camera(tmp_path / "camera.yaml", CameraFile(camera=camera, pixel_size_nm=110.0))
    recipe = replace(
        TINY,
        pixel_size_nm=110.0,
        psf=MeasuredPSF(file=str(tmp_path / "psf.h5")),
        camera=MeasuredCamera(file=str(tmp_path / "camera.yaml")),
    )
    run(recipe, tmp_path / "m.safetensors")
    for file in tmp_path.glob("[pc]*"):
        file.unlink()
    model = Localizer.load(tmp_path / "m.safetensors")
    xyz = torch.tensor([[1150.0, 1170.0, 150.0]])
    assert model.psf is not None
    assert model.camera is not None
    torch.testing.assert_close(model.psf.integrate_pixels(xyz), psf.integrate_pixels(xyz))
    torch.testing.assert_close(model.camera.read_noise_e, camera.read_noise_e)

    # and localizes by it, where nothing else is stated
    movie = camera.sample(torch.full((4, 60, 64), 30.0), torch.Generator().manual_seed(0))
    write_movie(tmp_path / "movie.tif", movie.numpy().astype(np.uint16))
    done = localize_file(tmp_path / "movie.tif", model, tmp_path / "out")
    assert done.acquisition.pixel_size_nm == 110.0
    taken = done.acquisition.camera
    assert (taken.baseline, taken.qe) == (model.camera.baseline, model.camera.qe)
    assert isinstance(taken.read_noise_e, torch.Tensor)
    torch.testing.assert_close(taken.read_noise_e, model.camera.read_noise_e, rtol=0, atol=0)
    assert any(
        "the one that the model was trained for was taken" in e for e in done.acquisition.estimates
    )
    assert done.files


def test_a_network_is_asked_for_the_photons_of_the_core_where_the_recipe_says_so() -> None:
    recipe = TrainConfig(psf=PSFPrior(halo_fraction=(0.3, 0.3)))
    batch = recipe.forward_model().sample(3, 2, (16, 16), torch.Generator().manual_seed(0))
    total, core = (counted(batch, Optimization(photons=kind)) for kind in ("total", "core"))
    torch.testing.assert_close(core.photons / total.photons, batch.core[total.frame // 2])
    assert float(batch.core.max()) < 0.85
    assert float(total.photons.min()) >= 50


def test_it_learns(tmp_path: Path) -> None:
    config = replace(TINY, training=replace(TINY.training, steps=300, movies=4, validate_every=300))
    steps = list(train(config, tmp_path / "m.safetensors", device="cpu", report_every=30))
    assert [step.fraction for step in steps] == pytest.approx([i / 10 for i in range(1, 11)])
    reports = [step.detail for step in steps]
    assert reports[-1].loss < 0.4 * reports[0].loss
    assert reports[-1].validation is not None
    assert reports[-1].validation.jaccard > 0.1


def test_a_budget_of_minutes_ends_the_training(tmp_path: Path) -> None:
    config = replace(TINY, training=replace(TINY.training, steps=10**6, validate_every=10**6))
    last = run(config, tmp_path / "m.safetensors", minutes=0.06)[-1]
    assert last.step < 3000
    assert last.validation is not None
    assert (tmp_path / "m.safetensors").is_file()
    assert last.learning_rate < 0.5 * TINY.training.learning_rate, "the schedule follows the time"


def test_steps_without_a_finite_loss_are_left_out_and_stop_it_when_they_repeat(
    tmp_path: Path,
) -> None:
    bad = {2}
    calls = 0

    def loss(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss_of(*arguments) * (math.nan if calls in bad else 1)

    last = run(TINY, tmp_path / "m.safetensors", loss=loss)[-1]
    assert last.skipped == 1
    assert all(
        torch.isfinite(p).all() for p in Localizer.load(tmp_path / "m.safetensors").parameters()
    )
    bad = set(range(1, 1000))
    with pytest.raises(
        TrainingError, match=r"diverged for the fourth time .* lower training\.learning_rate"
    ):
        run(
            replace(TINY, training=replace(TINY.training, steps=100)),
            tmp_path / "n.safetensors",
            loss=loss,
        )


def test_a_training_that_diverges_goes_on_from_its_last_good_state(tmp_path: Path) -> None:
    calls = 0

    def loss(model: Localizer, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 18:  # as a step that was much too large leaves it
            with torch.no_grad():
                model.out.bias[0] += 30  # a molecule in every pixel
        return loss_of(model, *arguments)

    reports = run(
        replace(TINY, training=replace(TINY.training, steps=40)),
        tmp_path / "m.safetensors",
        loss=loss,
    )
    assert [r.recovered for r in reports] == [0] * 4 + [1] * 6
    assert reports[4].loss > 10 * abs(reports[3].loss)
    assert reports[5].loss < 2 * abs(reports[3].loss)
    assert reports[5].learning_rate == pytest.approx(reports[3].learning_rate / 2, rel=0.3)
    assert Localizer.load(tmp_path / "m.safetensors").record.recovered == 1


def test_a_model_that_validation_finds_far_worse_is_not_kept(tmp_path: Path) -> None:
    calls = 0

    def loss(model: Localizer, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # among the first reports, of which none is far beyond the others yet
            with torch.no_grad():
                model.out.weight.mul_(1000)
        return loss_of(model, *arguments)

    able = load_model("gaussian-2d")
    plan = replace(TINY.training, steps=16, learning_rate=1e-5)
    config = replace(TINY, network=able.network, training=plan)
    reports = run(config, tmp_path / "m.safetensors", start=able, loss=loss)
    assert [r.recovered for r in reports] == [0, 0, 1, 1]
    model = Localizer.load(tmp_path / "m.safetensors")
    efficiency = [row["efficiency"] for row in model.record.validation]
    assert min(efficiency) > 2 * MAX_EFFICIENCY_DROP
    assert efficiency[2] == efficiency[1], "what is kept is what was good"
    assert model.record.recovered == 1


def test_only_a_model_that_had_learnt_something_can_be_lost() -> None:
    assert Course.lost_efficiency({"efficiency": 39.0}, validations(10, 50, 45))
    assert Course.lost_efficiency({"efficiency": math.nan}, validations(10, 50))
    assert not Course.lost_efficiency({"efficiency": 41.0}, validations(10, 50, 45))
    assert not Course.lost_efficiency({"efficiency": -38.0}, validations(0, 0)), (
        "the first molecules are found, roughly"
    )
    assert not Course.lost_efficiency({"efficiency": -38.0}, validations(math.nan))
    assert not Course.lost_efficiency({"efficiency": 5.0}, [])


def test_a_single_loss_beyond_all_others_is_no_divergence(tmp_path: Path) -> None:
    calls = 0

    def loss(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss_of(*arguments) + (5000 if calls == 18 else 0)

    reports = run(
        replace(TINY, training=replace(TINY.training, steps=40)),
        tmp_path / "m.safetensors",
        loss=loss,
    )
    assert [r.recovered for r in reports] == [0] * 10
    assert max(r.loss for r in reports) <= 2 * abs(reports[0].loss)


def validations(*efficiencies: float) -> list[dict[str, float]]:
    return [{"efficiency": e, "isolated_error_over_sigma": 1.1} for e in efficiencies]


def test_it_ends_early_when_validation_no_longer_improves() -> None:
    course = Course(
        plan=Optimization(patience=3, decay_share=0.25, warm_up_steps=1, learning_rate=1.0)
    )
    assert course.end_after(0.1, validations(10, 20, 30, 40, 41)) == 1, "it improves"
    assert course.rate(0.2, 1000) == 1
    course.end = course.end_after(0.3, validations(10, 40, 40, 40.1, 39.9))
    assert course.converged
    assert course.end == pytest.approx(0.4), "a quarter of the whole is left to fall in"
    assert [course.rate(at, 1000) for at in (0.3, 0.35, 0.4)] == pytest.approx([1, 0.5, 0])
    assert course.end_after(0.35, validations(10, 40, 40, 40, 40, 40)) == course.end, (
        "once it falls, it ends"
    )
    honest = [
        {"efficiency": 40.0, "isolated_error_over_sigma": s} for s in (2.0, 1.9, 1.7, 1.5, 1.3)
    ]
    assert Course(plan=Optimization(patience=3)).end_after(0.3, honest) == 1, (
        "sigmas still become honest"
    )


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    config = replace(TINY, training=replace(TINY.training, steps=240, movies=4, validate_every=240))
    recipe.write_text(yaml.safe_dump(to_mapping(config)))
    alone = run(config, tmp_path / "alone.safetensors")
    both = tmp_path / "both.safetensors"
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "decode",
    ]
    arguments = [
        "train",
        str(recipe),
        "-o",
        str(both),
        "--log",
        str(tmp_path / "log"),
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("240 steps") == 1, "one of them reports"
    record = Localizer.load(both).record
    assert record.processes == 2
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert list(losses) == [50, 100, 150, 200, 240]
    for last in (100, 200, 240):
        own = [r.loss for r in alone if last - 40 <= r.step <= last]
        mean, scatter = float(np.mean(own)), float(np.std(own)) / len(own) ** 0.5
        # both are means over simulations of their own, of about as many steps
        assert abs(losses[last] - mean) < 5 * scatter + 0.1 * abs(mean)
    assert losses[240] < 0.6 * losses[50]


STEP = """
import sys, torch
from decode.config import load_config
from decode.training.processes import processes
from decode.training.learner import Learner

recipe, out = sys.argv[1:]
config = load_config(recipe)
torch.manual_seed(0)
with processes(torch.device("cpu")) as team:
    learner = Learner(config.localizer(), config.training, team)
    batch = config.forward_model().sample(2, 3, (16, 16), torch.Generator().manual_seed(team.rank))
    loss = learner.step(batch, 1e-3)
    gradients = [p.grad for p in learner.model.parameters()]
    torch.save([loss, gradients, list(learner.model.parameters())], f"{out}/{team.rank}.pt")
"""


def test_processes_step_by_the_mean_of_their_gradients(tmp_path: Path) -> None:
    config = replace(TINY, training=replace(TINY.training, gradient_norm=1e9))
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "step.py"
    recipe.write_text(yaml.safe_dump(to_mapping(config)))
    script.write_text(STEP)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *command, str(recipe), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (loss, gradients, weights), (_, _, others) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    torch.manual_seed(0)
    model = config.localizer()
    batches = [
        config.forward_model().sample(2, 3, (16, 16), torch.Generator().manual_seed(rank))
        for rank in (0, 1)
    ]
    whole = torch.stack([loss_of(model, batch, config.training) for batch in batches]).mean()
    whole.backward()
    torch.testing.assert_close(loss, whole.detach(), rtol=1e-4, atol=1e-4)
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True)), "and stay alike"


def test_movies_that_processes_cannot_share_are_refused() -> None:
    assert Processes(rank=0, size=2).share_of(6) == 3
    with pytest.raises(ValueError, match="2 processes cannot share"):
        Processes(rank=0, size=2).share_of(3)


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="there is no checkpoint"):
        run(TINY, out, resume=True)
    run(TINY, out)
    with pytest.raises(ValueError, match="another recipe"):
        run(replace(TINY, seed=4), out, resume=True)
    checkpoint = out.with_suffix(".checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        run(TINY, out, resume=True)
    with pytest.raises(FileNotFoundError, match=r"missing does not exist, make it first"):
        run(TINY, tmp_path / "missing" / "m.safetensors")


def test_a_checkpoint_that_cannot_be_written_is_said(
    tmp_path: Path, limited_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    with (
        limited_files(20_000),
        pytest.raises(OSError, match=r"cannot write .*m\.checkpoint: the limit"),
    ):
        run(TINY, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no GPU"):
        next(train(TINY, tmp_path / "m.safetensors", device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_it_trains_on_a_gpu(tmp_path: Path) -> None:
    last = list(train(TINY, tmp_path / "m.safetensors", device="cuda", report_every=4))[-1]
    assert math.isfinite(last.loss)
