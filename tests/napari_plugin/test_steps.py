"""The steps without a window: what they need, what they do, and what they tell to type."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, open_movie, read_camera, read_table, write_movie, write_table
from decode.calibrate.psf import Optics
from decode.cli import app
from decode.io.psfs import PSFFile, write_psf
from decode.models import load_model
from decode.optics.gaussian import GaussianPSF
from decode.progress import Progress, Steps, Stepwise, followed
from decode.verbs.adapt import Adapted
from decode.verbs.calibrate_psf import calibrate_psf
from decode_napari.recovery import discard, kept, place_for, write
from decode_napari.samples import sample_file
from decode_napari.session import ChosenPSF, Session
from decode_napari.steps import STEPS
from decode_napari.steps.drift import DriftStep
from decode_napari.steps.export import SETTINGS, ExportStep
from decode_napari.steps.inspect import InspectStep, _noise
from decode_napari.steps.link import LinkStep
from decode_napari.steps.localize import LocalizeSettings, LocalizeStep, region_in, region_text
from decode_napari.steps.model import ModelStep, TrainSettings, card_of
from decode_napari.steps.movie import MovieSettings, MovieStep, asks_em_gain
from decode_napari.steps.psf import PSFSettings, PSFStep
from decode_napari.steps.quality import QualityStep

MOVIE, CAMERA = sample_file("blinking_2d.tif"), sample_file("camera.yaml")


def localized(session: Session, settings: LocalizeSettings) -> LocalizeStep:
    movie, model, step = MovieStep(session), ModelStep(session), LocalizeStep(session)
    movie.settings = MovieSettings(path=MOVIE, camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    model.accept(followed(model.load("gaussian-2d")))
    step.settings = settings
    for report in step.run():
        step.absorb(report)
    step.show(complete=True)
    return step


@pytest.fixture(scope="module")
def session() -> Session:
    """With 24 frames of the sample movie localized."""
    session = Session()
    localized(session, LocalizeSettings(psf_sigma_nm=95.0, frames=(0, 24)))
    return session


def test_steps_light_up_as_their_inputs_exist() -> None:
    session = Session()
    steps = {kind: kind(session) for kind in STEPS}
    dark = [kind for kind, step in steps.items() if step.missing()]
    of_molecules = [InspectStep, DriftStep, LinkStep, QualityStep, ExportStep]
    assert dark == [PSFStep, LocalizeStep, *of_molecules]
    assert "movie" in steps[LocalizeStep].missing()
    for step in steps.values():
        assert not step.done()


def test_a_model_of_many_psfs_waits_for_one() -> None:
    session = Session()
    movie, model, step = MovieStep(session), ModelStep(session), LocalizeStep(session)
    movie.settings = MovieSettings(path=MOVIE, camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    model.accept(followed(model.load("astigmatic-3d")))
    assert step.missing().startswith("astigmatic-3d needs a calibrated PSF")
    assert session.model is not None
    assert card_of(session.model).context == ("the PSF, by the step PSF",)
    with pytest.raises(ValueError, match="make one in the step PSF"):
        step.run()


def test_the_movie_step_reads_the_camera_and_counts_photons(session: Session) -> None:
    step = MovieStep(Session())
    step.settings = MovieSettings(path=MOVIE, camera=str(CAMERA))
    checked = followed(step.check())
    assert checked.movie.shape == (200, 64, 64)
    assert checked.movie.pixel_size_nm == 100.0
    assert checked.warnings == ()
    middle = (checked.edges[1:] + checked.edges[:-1]) / 2
    # the sample's background is about 30 photons
    assert 20 < middle[checked.counts.argmax()] < 45


def test_only_presets_of_emccds_ask_for_an_em_gain() -> None:
    asked = {
        name: asks_em_gain(name)
        for name in ("andor-ixon-ultra-897", "pco-edge-4.2", str(CAMERA), None)
    }
    assert asked == {
        "andor-ixon-ultra-897": True,
        "pco-edge-4.2": False,
        str(CAMERA): False,
        None: False,
    }


def test_a_camera_that_is_not_stated_is_estimated_and_said() -> None:
    step = MovieStep(Session())
    step.settings = MovieSettings(path=MOVIE, pixel_size_nm=100.0)
    checked = followed(step.check())
    assert checked.movie.camera is None
    assert checked.remarks


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (MovieSettings(), "no movie"),
        (MovieSettings(path=Path("nowhere.tif")), "nowhere.tif"),
        (MovieSettings(path=MOVIE, camera="nowhere.yaml"), "nowhere.yaml"),
        (MovieSettings(path=MOVIE, camera="andor-ixon-ultra-897", pixel_size_nm=100.0), "EM gain"),
        (MovieSettings(path=CAMERA), "export it as one of them"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_sentence(
    settings: MovieSettings, sentence: str
) -> None:
    step = MovieStep(Session())
    step.settings = settings
    with pytest.raises((ValueError, OSError), match=sentence):
        followed(step.check())


@pytest.mark.parametrize(
    ("corners", "text"),
    [
        # along the edges of pixels of 100 nm: those between them
        ([(0.4, 0.8), (1.2, 0.8), (1.2, 2.0), (0.4, 2.0)], "4:12,8:20"),
        # pixel 3 has its centre at 0.35 um: it lies in the first rectangle, and not in the second
        ([(0.34, 0.0), (0.34, 0.1), (0.46, 0.1), (0.46, 0.0)], "3:5,0:1"),
        ([(0.36, 0.0), (0.36, 0.1), (0.44, 0.1), (0.44, 0.0)], None),
        # beyond the frame there is nothing
        ([(-5.0, 6.0), (-5.0, 99.0), (0.3, 99.0), (0.3, 6.0)], "0:3,60:64"),
        ([(9.0, 9.0), (9.0, 10.0), (10.0, 10.0), (10.0, 9.0)], None),
    ],
)
def test_a_region_is_the_pixels_whose_centres_lie_in_it(
    corners: list[tuple[float, float]], text: str | None
) -> None:
    if text is None:
        with pytest.raises(ValueError, match="no pixel"):
            region_in(corners, 100.0, (64, 64))
    else:
        assert region_text(region_in(corners, 100.0, (64, 64))) == text


def test_in_a_region_the_same_molecules_are_found_and_both_copies_find_them(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the whole field, but for those elsewhere; the file is one that was cut short."""
    with open_movie(MOVIE) as frames:
        write_movie(tmp_path / "cut.tif", frames.read(0, 30))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:-20_000])
    own = Session()
    movie, step = MovieStep(own), LocalizeStep(own)
    movie.settings = MovieSettings(path=tmp_path / "cut.tif", camera=str(CAMERA))
    with pytest.raises(ValueError, match="cut short"):
        followed(movie.check())
    movie.settings = replace(movie.settings, allow_truncated=True)
    movie.accept(followed(movie.check()))
    own.model = session.model
    step.settings = LocalizeSettings(
        psf_sigma_nm=95.0, frames=(0, 24), roi=(slice(4, 40), slice(None, 30))
    )
    for report in step.run():
        step.absorb(report)
    step.show(complete=True)
    assert session.found is not None
    assert own.found is not None
    whole, part = session.found.filter.emitters, own.found.filter.emitters
    x, y = (whole.xyz[:, i] / 100 for i in (0, 1))
    inside = whole[(y >= 4) & (y < 40) & (x < 30)]
    assert len(part) == len(inside) > 100
    torch.testing.assert_close(part.xyz, inside.xyz, rtol=0, atol=0.5)
    preview = followed(step.preview(10))
    assert len(preview) == int((part.frame == 10).sum()) > 0

    monkeypatch.chdir(tmp_path)
    _, verb, *arguments = shlex.split(step.as_command())
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exit_code == 0, result.output
    commanded = (tmp_path / "molecules" / "cut.csv").read_bytes()
    exec(compile(step.as_python(), "localize", "exec"), {})
    assert (tmp_path / "molecules" / "cut.csv").read_bytes() == commanded
    assert commanded.count(b"\n") == len(part) + 1


def test_a_model_that_is_adapted_localizes_in_place_of_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs PSF and camera, and the copied command says so."""
    asked: dict[str, Any] = {}

    @Stepwise
    def adapt(frames: object, **options: Any) -> Steps[Adapted]:
        asked.update(options)
        yield Progress(0.5, "training")
        model = load_model("gaussian-2d")
        return Adapted(model=model, file=tmp_path / "mine.safetensors", remark="it was trained")

    monkeypatch.setattr("decode.verbs.adapt.adapt", adapt)
    own = Session()
    movie, step = MovieStep(own), LocalizeStep(own)
    movie.settings = MovieSettings(path=MOVIE, camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    step.settings = LocalizeSettings(adapt=7.0, frames=(0, 8))
    assert step.missing_to_run() == own.why_not("psf") != ""
    file = PSFFile(psf=GaussianPSF(130.0, pixel_size_nm=100.0), z_range_nm=(0.0, 0.0))
    own.put(psf=ChosenPSF(path=tmp_path / "psf.h5", file=file))
    assert step.missing_to_run() == ""
    for progress in step.run():
        step.absorb(progress)
    step.show(complete=True)
    assert asked["minutes"] == 7.0
    assert asked["psf"] == tmp_path / "psf.h5"
    assert own.found is not None
    assert own.found.model is not None
    assert own.found.model.name == str(tmp_path / "mine.safetensors")
    assert "it was trained" in own.found.filter.emitters.facts.estimates
    words = shlex.split(step.as_command())
    assert words[words.index("--adapt") + 1] == "7"
    assert "--model" not in words
    assert "adapt=7.0" in step.as_python()


def test_the_table_is_that_of_the_copied_command_to_the_last_digit(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, export = LocalizeStep(session), ExportStep(session)
    step.settings = LocalizeSettings(psf_sigma_nm=95.0, frames=(0, 24))
    monkeypatch.chdir(tmp_path)
    _, verb, *arguments = shlex.split(step.as_command())
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exit_code == 0, result.output
    for suffix in (".csv", ".hdf5"):
        followed(export.save_table(tmp_path / f"window{suffix}"))
        theirs, ours = tmp_path / "molecules" / f"blinking_2d{suffix}", tmp_path / f"window{suffix}"
        assert len(read_table(ours)) > 500
        if suffix == ".csv":
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            for name, column in read_table(theirs).columns().items():
                assert torch.equal(
                    read_table(ours).columns()[name].nan_to_num(), column.nan_to_num()
                ), name


def test_the_copied_python_does_the_same(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, inspect = LocalizeStep(session), InspectStep(session)
    step.settings = LocalizeSettings(psf_sigma_nm=95.0, frames=(0, 24))
    monkeypatch.chdir(tmp_path)
    exec(compile(step.as_python(), "localize", "exec"), {})
    assert session.found is not None
    total = len(session.found.filter.emitters)
    assert capsys.readouterr().out.split()[-1] == str(total)
    session.found.filter.restrict("sigma", 0, 15)
    try:
        exec(compile(inspect.as_python(), "inspect", "exec"), {})
        assert capsys.readouterr().out.split()[-1] == str(session.found.filter.n_passing)
    finally:
        session.found.filter.restrict("sigma", 0, 1e9)
    for python in (MovieStep(session).as_python(), ModelStep(session).as_python()):
        exec(compile(python, "copied", "exec"), {})


def test_a_table_of_another_movie_keeps_its_own_pixels(session: Session, tmp_path: Path) -> None:
    assert session.movie is not None
    one = EmitterSet(frame=torch.tensor([0]), xyz=torch.full((1, 3), 50.0), photons=torch.ones(1))
    other = 1.3 * session.movie.pixel_size_nm
    write_table(replace(one, metadata={"pixel_size_nm": other}), tmp_path / "other.hdf5")
    found = followed(InspectStep(session).read(tmp_path / "other.hdf5"))
    assert found.filter.emitters.metadata["pixel_size_nm"] == other
    torch.testing.assert_close(
        found.filter.emitters.xyz[0], torch.full((3,), 50.0, dtype=torch.float64)
    )
    # what does not say it is in those of the movie
    (tmp_path / "locs.csv").write_text("frame,x,y,lpx,lpy\n0,1.5,2.5,0.1,0.1\n")
    found = followed(InspectStep(session).read(tmp_path / "locs.csv"))
    sides = found.filter.emitters.xyz[0, :2] / session.movie.pixel_size_nm
    assert sides.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_the_filtered_table_is_that_of_the_copied_command_and_of_the_copied_python(
    session: Session, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.found is not None
    monkeypatch.chdir(tmp_path)
    write_table(session.found.filter.emitters, f"table{suffix}")
    opened = Session()
    inspect, export = InspectStep(opened), ExportStep(opened)
    inspect.accept(followed(inspect.read(Path(f"table{suffix}"))))
    assert opened.found is not None
    assert not inspect.as_command()
    some = opened.found.filter
    some.restrict(
        "photons", float(np.float32(some.emitters.photons[3])), 1e9
    )  # an end that a molecule lies on
    some.restrict("sigma", 0, 15.123456789)
    assert 10 < some.n_passing < len(some.emitters) - 10
    followed(export.save_table(tmp_path / f"window{suffix}"))

    _, verb, *arguments = shlex.split(inspect.as_command())
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exit_code == 0, result.output
    ours, theirs = read_table(f"window{suffix}"), read_table(f"table_filtered{suffix}")
    assert len(ours) == some.n_passing
    for name, column in ours.columns().items():
        assert torch.equal(theirs.columns()[name].nan_to_num(), column.nan_to_num()), name
    assert ours.metadata == {k: v for k, v in theirs.metadata.items() if k != "commands"}
    names: dict[str, Any] = {}
    exec(compile(inspect.as_python(), "inspect", "exec"), names)
    assert names["molecules"].metadata["filter"] == some.passing().metadata["filter"]
    assert torch.equal(names["molecules"].xyz, some.passing().xyz)

    commands = export.as_command().split(" && ")
    assert [line.split()[1] for line in commands] == ["filter", "render"]
    export.accept(tmp_path / f"window{suffix}")  # the table that was saved needs no filter
    assert shlex.split(export.as_command())[1:3] == ["render", str(tmp_path / f"window{suffix}")]
    some.restrict("sigma", 0, 10)
    assert " && " in export.as_command()
    exec(compile(export.as_python(), "export", "exec"), names)
    assert names["image"].sum() == pytest.approx(some.n_passing, rel=0.02)


def test_a_preview_finds_what_the_whole_run_finds_in_the_frame(session: Session) -> None:
    step = LocalizeStep(session)
    step.settings = LocalizeSettings(psf_sigma_nm=95.0)
    preview = followed(step.preview(10))
    assert session.found is not None
    whole = session.found.filter.emitters
    whole = whole[whole.frame == 10]
    assert len(preview) == len(whole) > 10
    torch.testing.assert_close(preview.xyz, whole.xyz, rtol=0, atol=0.5)


def test_what_the_molecules_explain_is_taken_from_the_frame(session: Session) -> None:
    """The light of all molecules leaves little more than noise, in standard deviations; that of
    none the spots."""
    step = InspectStep(session)
    assert session.found is not None
    with_all = followed(step.explain(10))
    session.found.filter.restrict("photons", 1e8, 1e9)
    try:
        without = followed(step.explain(10))
    finally:
        session.found.filter.restrict("photons", 0, 1e9)
    assert 0.8 < with_all.residual.std() < 1.5 < 0.7 * without.residual.std()
    camera = session.movie.camera.camera
    measured = [each.model + each.residual * _noise(camera, torch.from_numpy(each.model)).numpy()
                for each in (with_all, without)]  # fmt: skip
    np.testing.assert_allclose(*measured, rtol=1e-3)


def test_a_picture_holds_the_molecules_that_pass(session: Session, tmp_path: Path) -> None:
    step = ExportStep(session)
    step.settings = replace(SETTINGS, pixel_nm=20.0)
    rendered = followed(step.render())
    assert session.found is not None
    assert rendered.image.shape == (320, 320)
    assert rendered.image.sum() == pytest.approx(session.found.filter.n_passing, rel=0.01)
    followed(step.save_picture(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_nothing_is_written_where_nothing_can_be(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write"):
        followed(ExportStep(session).save_table(tmp_path / "file" / "table.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_opened_is_not_saved_over(session: Session, tmp_path: Path) -> None:
    assert session.found is not None
    table, camera = tmp_path / "table.hdf5", tmp_path / "camera.yaml"
    write_table(session.found.filter.emitters, table)
    before, _ = table.read_bytes(), camera.write_text("pixel_size_nm: 100\n")
    opened = Session()
    inspect, export = InspectStep(opened), ExportStep(opened)
    inspect.accept(followed(inspect.read(table)))
    with pytest.raises(ValueError, match=r"table\.hdf5 would be written over .*, which is read"):
        export.save_table(table)
    with pytest.raises(ValueError, match=r"camera\.yaml is there and belongs to no table"):
        export.save_table(tmp_path / "camera.hdf5")
    with pytest.raises(ValueError, match=r"pictures are written as \.png, \.tif or \.svg"):
        export.save_picture(tmp_path / "picture.jpg")
    assert table.read_bytes() == before
    assert camera.read_text() == "pixel_size_nm: 100\n"


def test_a_card_says_what_a_model_is_good_for(session: Session) -> None:
    assert session.model is not None
    card = card_of(session.model)
    assert "2D" in card.description
    assert any("psf sigma px" in told for told in card.context)
    assert any("Jaccard" in line for line in card.figures)


def test_a_psf_from_beads_says_what_it_rests_on(tmp_path: Path) -> None:
    with open_movie(sample_file("beads_3d.tif")) as stack:
        write_movie(tmp_path / "beads.tif", stack.read(0, 81)[::8, 8:58, 4:90])
    session = Session()
    movie, step = MovieStep(session), PSFStep(session)
    movie.settings = MovieSettings(path=sample_file("blinking_3d.tif"), camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    with pytest.raises(ValueError, match="bead"):
        followed(step.calibrate())
    step.settings = PSFSettings(
        beads=(tmp_path / "beads.tif",),
        out=tmp_path / "psf.h5",
        z_step_nm=160.0,
        model="gaussian",
    )
    step.accept(followed(step.calibrate()))
    assert step.calibrated is not None
    assert len(step.calibrated.calibration.beads) == 2
    assert step.calibrated.verdict
    assert {"Beads against the PSF", "Beads that were not fitted"} <= {
        p.title for p in step.calibrated.pictures
    }
    assert all(picture.png.startswith(b"\x89PNG") for picture in step.calibrated.pictures)
    assert (tmp_path / "psf.h5").is_file()
    assert (tmp_path / "psf.html").is_file()
    assert "--z-step 160" in step.as_command()
    again = PSFStep(Session())
    again.accept(followed(again.read(tmp_path / "psf.h5")))
    assert again.done() == step.done()
    assert step.calibrated.chosen.file.depth in step.done()
    low, high = step.calibrated.chosen.file.usable_nm or (0.0, 0.0)
    assert f"{low:.0f} to {high:.0f} nm" in step.calibrated.verdict[0]


@pytest.mark.parametrize(
    "settings",
    [
        PSFSettings(z_step_nm=20.0),
        PSFSettings(
            z_focus=0,
            model="pupil",
            positions=Path("true.csv"),
            optics=Optics(1.4, 585.0, 1.406, 1.33, 40.0, phase_mask=True),
        ),
        PSFSettings(model="pupil", optics=Optics()),
        PSFSettings(z_step_nm=20.0, frames_per_plane=3, downwards=True),
        PSFSettings(downwards=False),
        PSFSettings(z_of_frames=Path("depths.txt")),
    ],
)
def test_step_command_and_python_calibrate_alike(
    settings: PSFSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three call the same function with the same arguments."""
    calls = []
    signature = inspect.signature(calibrate_psf)

    def record(*arguments: object, **options: object) -> Steps[None]:
        yield Progress(0.0)
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        beads = bound.arguments.pop("beads")
        assert isinstance(beads, Sequence)
        # a command states the usual optics too, which are the same as none
        others = [None if o == Optics() else o for o in bound.arguments.values()]
        calls.append([[str(path) for path in beads], *map(str, others)])
        raise ValueError("that is all")

    write_table(
        EmitterSet(
            frame=torch.zeros(2).long(),
            xyz=torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
            photons=torch.ones(2),
        ),
        tmp_path / "true.csv",
    )
    (tmp_path / "depths.txt").write_text("\n".join(str(20.0 * i) for i in range(51)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("decode.verbs.calibrate_psf.calibrate_psf", Stepwise(record))
    session = Session()
    movie, step = MovieStep(session), PSFStep(session)
    movie.settings = MovieSettings(path=sample_file("blinking_3d.tif"), camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    step.settings = replace(settings, beads=(sample_file("beads_3d.tif"),), out=tmp_path / "psf.h5")
    with pytest.raises(ValueError, match="that is all"):
        followed(step.calibrate())
    _, *arguments = shlex.split(step.as_command())
    assert "that is all" in CliRunner().invoke(app, arguments).stderr
    with pytest.raises(ValueError, match="that is all"):
        exec(compile(step.as_python(), "calibrate", "exec"), {})
    in_window, in_terminal, in_python = calls
    assert in_window == in_terminal == in_python
    assert ("--phase-mask" in arguments) == (
        settings.optics is not None and settings.optics.phase_mask
    )


def test_training_gives_curves_a_model_and_its_command(tmp_path: Path) -> None:
    step = ModelStep(Session())
    assert step.missing_for_training()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY)
    step.settings = TrainSettings(out=tmp_path / "tiny.safetensors", recipe=recipe, minutes=0.05)
    reports: list[Progress[Any]] = []
    step.accept(followed(step.train(), reports.append))
    details = [progress.detail for progress in reports if progress.detail is not None]
    assert details
    assert any(detail.validation is not None for detail in details)
    assert step.session.model is not None
    assert step.session.model.name.endswith("tiny.safetensors")
    assert shlex.split(step.as_command())[:2] == ["decode", "train"]


def test_the_copied_python_of_a_training_estimates_the_recipe_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session()
    movie, psf, step = MovieStep(session), PSFStep(session), ModelStep(session)
    movie.settings = MovieSettings(path=sample_file("blinking_3d.tif"), camera=str(CAMERA))
    movie.accept(followed(movie.check()))
    step.settings = TrainSettings(
        out=Path("mine.safetensors"), minutes=0.05, settings=TINY_SETTINGS
    )
    assert "PSF" in step.missing_for_training()
    assert not step.as_command()
    assert not step.as_python()
    astigmatic = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=300.0)
    write_psf(tmp_path / "psf.h5", PSFFile(psf=astigmatic, z_range_nm=(-500.0, 500.0)))
    psf.accept(followed(psf.read(tmp_path / "psf.h5")))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(step.as_python(), "train", "exec"), names)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"mine.yaml", "mine.safetensors"} < made
    assert "mine_camera.yaml" not in made, "the camera's own file says all"
    assert capsys.readouterr().out.split()[-1] == "2"
    written = (tmp_path / "mine.yaml").read_text()
    followed(step.train())  # the window's own estimate is the same
    assert (tmp_path / "mine.yaml").read_text() == written
    assert [line.split()[1] for line in step.as_command().split(" && ")] == ["estimate", "train"]


def test_a_training_overwrites_neither_recipe_nor_camera(tmp_path: Path) -> None:
    session = Session()
    movie, psf, step = MovieStep(session), PSFStep(session), ModelStep(session)
    recipe, camera = tmp_path / "mine.json", tmp_path / "mine.yaml"
    recipe.write_text(TINY)
    camera.write_text(CAMERA.read_text())
    movie.settings = MovieSettings(path=MOVIE, camera=str(camera))
    movie.accept(followed(movie.check()))
    write_psf(
        tmp_path / "psf.h5",
        PSFFile(psf=GaussianPSF(130.0, pixel_size_nm=100.0), z_range_nm=(0.0, 0.0)),
    )
    psf.accept(followed(psf.read(tmp_path / "psf.h5")))
    for chosen in (recipe, None):
        step.settings = TrainSettings(
            out=tmp_path / "mine.safetensors", recipe=chosen, minutes=0.05
        )
        with pytest.raises(ValueError, match=r"would be written over .*mine"):
            followed(step.train())
    assert recipe.read_text() == TINY
    assert camera.read_text() == CAMERA.read_text()


TINY_SETTINGS = (
    "training.steps=2",
    "training.movies=1",
    "training.frames=3",
    "training.size_px=16",
    "network.frame_widths=[4]",
    "network.sequence_widths=[4]",
    "network.head_width=4",
)

TINY = """
version: 1
scene: {density_per_um2: [0.5, 1.0], flux_photons: [1000.0, 3000.0]}  # losses that scatter little
training: {steps: 100000, movies: 1, frames: 3, size_px: 16, validate_every: 20}
network: {frame_widths: [4], sequence_widths: [4], head_width: 4}
"""


def test_molecules_that_nobody_saved_are_kept_and_never_overwritten(tmp_path: Path) -> None:
    one = EmitterSet(
        frame=torch.tensor([0]),
        xyz=torch.zeros(1, 3),
        photons=torch.ones(1),
        metadata={"movie": "a/b.tif"},
    )
    paths = []
    for _ in range(2):
        paths.append(place_for(one, tmp_path / "kept"))
        write(one, paths[-1])
    first, second = paths
    assert first != second
    assert set(kept(tmp_path / "kept")) == {first, second}
    write(EmitterSet.cat([one, one]), second)  # the run went on
    assert [len(read_table(path)) for path in paths] == [1, 2]
    discard(first)
    assert {path.stem for path in (tmp_path / "kept").iterdir()} == {second.stem}


def test_the_sample_camera_is_the_samples() -> None:
    assert read_camera(CAMERA).camera.em_gain == 300
