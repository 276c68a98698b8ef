"""A verb stops in the midst of its work, wherever that is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from decode import open_movie, write_movie
from decode.calibrate.gaussian import fit_gaussian
from decode.errors import reading
from decode.io.psfs import PSFFile, write_psf
from decode.optics.gaussian import GaussianPSF
from decode.progress import Progress, Steps, Stepwise, followed
from decode_napari.samples import sample_file
from decode_napari.session import ChosenPSF, Session
from decode_napari.steps.model import ModelStep, TrainSettings
from decode_napari.steps.movie import MovieSettings, MovieStep
from decode_napari.steps.psf import PSFSettings, PSFStep
from decode_napari.stopping import Stop, Stopped

Verb = Steps[Any]
TRAINING = "the training begins"


def opened() -> Session:
    """With the 3D sample and its camera."""
    session = Session()
    step = MovieStep(session)
    step.settings = MovieSettings(
        path=sample_file("blinking_3d.tif"), camera=str(sample_file("camera.yaml"))
    )
    step.accept(followed(step.check()))
    return session


@pytest.fixture(scope="module")
def psf_step(tmp_path_factory: pytest.TempPathFactory) -> PSFStep:
    """Some planes of two beads of the sample, to be calibrated by the simplest model."""
    folder = tmp_path_factory.mktemp("psf")
    with open_movie(sample_file("beads_3d.tif")) as stack:
        write_movie(folder / "beads.tif", stack.read(0, 81)[::8, 8:58, 4:90])
    step = PSFStep(opened())
    step.settings = PSFSettings(
        beads=(folder / "beads.tif",), out=folder / "psf.h5", z_step_nm=160.0, model="gaussian"
    )
    return step


@pytest.fixture(scope="module")
def model_step(tmp_path_factory: pytest.TempPathFactory) -> ModelStep:
    """Nothing but a movie and its PSF: a training begins with the estimate of a recipe."""
    folder = tmp_path_factory.mktemp("model")
    session = opened()
    psf = GaussianPSF(110.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0, patch_px=21)
    file = PSFFile(psf=psf, z_range_nm=(-500.0, 500.0))
    write_psf(folder / "psf.h5", file)
    session.put(psf=ChosenPSF(path=folder / "psf.h5", file=file))
    step = ModelStep(session)
    step.settings = TrainSettings(out=folder / "model.safetensors")
    return step


def stages(verb: Verb, until: str = "") -> list[Progress[object]]:
    """What is reported until there is a result, or a message begins so."""
    seen = []
    for report in verb:
        if until and report.message.startswith(until):
            break
        seen.append(report)
    verb.close()
    return seen


def rises(reports: list[Progress[object]]) -> bool:
    """From 0 to 1, never back and in steps that show; and something is said all along."""
    fractions = [-1.0 if report.fraction is None else report.fraction for report in reports]
    assert all(report.message for report in reports)
    assert max(b - a for a, b in pairwise(fractions)) < 0.4
    return fractions[0] == 0 and fractions == sorted(fractions) and fractions[-1] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_pupil")
def test_a_calibration_says_how_far_it_is(psf_step: PSFStep, tmp_path: Path) -> None:
    simplest = psf_step.settings
    psf_step.settings = replace(simplest, model="spline", out=tmp_path / "psf.h5")
    reports = stages(psf_step.calibrate())
    psf_step.settings = simplest
    assert rises(reports)
    assert len({report.message for report in reports}) > 8


def test_an_estimate_says_how_far_it_is(model_step: ModelStep) -> None:
    assert rises(stages(model_step.train(), until=TRAINING))


def stops_between_any_two_stages(verb: Callable[[], Verb], until: str = "") -> bool:
    """A stop that is asked for as soon as a stage is reported is the end: nothing more is
    reported."""
    for stage in dict.fromkeys(report.message for report in stages(verb(), until)):
        stop, unwatched = Stop(), verb()
        watched = stop.watch(unwatched)
        while next(watched).message != stage:
            pass
        stop.ask()
        with pytest.raises(Stopped):
            next(watched)
        if unwatched.gi_frame is not None:
            return False
    return True


@pytest.mark.usefixtures("no_pupil")  # else it is fitted anew for each of the stages after it
@pytest.mark.slow
def test_a_calibration_stops_between_any_two_stages(
    psf_step: PSFStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = Stepwise(partial(fit_gaussian.steps, n_steps=3))
    monkeypatch.setattr("decode.calibrate.families.gaussian.fit_gaussian", hasty)
    out = psf_step.settings.out
    assert out is not None

    def verb() -> Verb:
        out.unlink(missing_ok=True)
        return psf_step.calibrate()

    assert stops_between_any_two_stages(verb)
    assert not out.exists()


def test_an_estimate_stops_between_any_two_stages_and_leaves_no_recipe(
    model_step: ModelStep,
) -> None:
    out = model_step.settings.out
    assert out is not None

    def verb() -> Verb:
        out.with_suffix(".yaml").unlink(missing_ok=True)
        return model_step.train()

    assert stops_between_any_two_stages(verb, until=TRAINING)
    assert not out.with_suffix(".yaml").exists()


def test_a_stop_reaches_a_verb_between_its_yields_and_lets_it_clean_up() -> None:
    cleaned, stop = [], Stop()

    def verb() -> Generator[int, None, None]:
        try:
            yield 1
            while True:
                torch.ones(3).sum()
        finally:
            cleaned.append(True)

    watched = stop.watch(verb())
    assert next(watched) == 1
    threading.Timer(0.2, stop.ask).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        next(watched)
    assert time.monotonic() - start < 5
    assert cleaned == [True]


def test_a_verb_that_is_stopped_while_it_reads_a_file_tells_no_ill_of_the_file() -> None:
    def verb() -> Verb:
        yield Progress(None, "begun")
        with reading("camera.yaml", "a camera file"):
            stop.ask()
            torch.zeros(3)

    stop = Stop()
    with pytest.raises(Stopped):
        stages(stop.watch(verb()))


def test_a_verb_that_is_left_alone_gives_its_reports_and_its_result() -> None:
    def verb() -> Generator[float, None, str]:
        yield float(torch.ones(2).sum())
        return "done"

    watched = Stop().watch(verb())
    assert next(watched) == 2.0
    with pytest.raises(StopIteration, match="done"):
        next(watched)


def test_while_a_verb_waits_others_are_not_stopped() -> None:
    def verb() -> Generator[int, None, None]:
        yield 1
        yield 2

    stop = Stop()
    watched = stop.watch(verb())
    next(watched)
    stop.ask()
    assert float(torch.ones(2).sum()) == 2.0
    with pytest.raises(Stopped):
        next(watched)


@pytest.mark.parametrize("asked_within", [True, False])
def test_a_thread_that_was_stopped_without_gradients_has_them_again(asked_within: bool) -> None:
    stop = Stop()

    @torch.no_grad()
    def verb() -> Verb:
        yield Progress(None, "begun")
        with torch.no_grad():
            if asked_within:
                stop.ask()
                torch.zeros(3)
        stop.ask()
        yield Progress(None, "never")
        torch.zeros(3)

    with pytest.raises(Stopped):
        stages(stop.watch(verb()))
    assert torch.is_grad_enabled()
    assert torch.ones(1, requires_grad=True).sum().requires_grad
