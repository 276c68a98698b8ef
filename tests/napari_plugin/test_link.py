"""The step that joins blinks, without a window."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from decode import EmitterSet, link, read_camera, read_table, write_table
from decode.cli import app
from decode.errors import Undetermined
from decode.postprocess.drift import Drift
from decode.progress import followed
from decode_napari.molecules import Filter
from decode_napari.samples import sample_file
from decode_napari.session import ChosenPSF, Found, OpenedMovie, Session
from decode_napari.steps.drift import DriftStep, Estimated
from decode_napari.steps.export import ExportStep
from decode_napari.steps.inspect import InspectStep
from decode_napari.steps.link import LinkSettings, LinkStep

N, N_FRAMES = 120, 500


def blinking() -> EmitterSet:
    """Molecules far apart, each in three of four frames."""
    rng = torch.Generator().manual_seed(0)
    place = torch.cat([20_000 * torch.rand(N, 2, generator=rng), torch.zeros(N, 1)], 1)
    noise = 10 * torch.randn(3 * N, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    return EmitterSet(
        frame=(4 * torch.arange(N)[:, None] + torch.tensor([0, 1, 3])).flatten(),
        xyz=place.repeat_interleave(3, 0) + noise,
        photons=500 + 100 * torch.rand(3 * N, generator=rng),
        xyz_sigma=torch.tensor([10.0, 10.0, torch.nan]).repeat(3 * N, 1),
        metadata={"pixel_size_nm": 100.0, "width_px": 256, "height_px": 256, "n_frames": N_FRAMES},
    )


def opened(table: EmitterSet, source: str = "table.parquet") -> Session:
    session = Session()
    session.put(found=Found(filter=Filter(table), source=source))
    return session


def at_hand(session: Session) -> Filter:
    assert session.found is not None
    return session.found.filter


def test_blinks_that_pass_are_joined_and_put_back() -> None:
    table = blinking()
    session = opened(table)
    step = LinkStep(session)
    at_hand(session).restrict("frame", 0, 239)  # half of them
    linked = followed(step.link())
    at_hand(session).restrict("frame", 0, 100)  # moved while it worked
    step.accept(linked)
    molecules = at_hand(session).emitters
    assert len(molecules) == N // 2
    np.testing.assert_array_equal(molecules.others["n_frames"], 3)
    assert at_hand(session).ranges == {}
    assert not session.is_saved  # on no disk yet
    assert step.done() == f"{3 * N // 2} localizations of {N // 2} molecules"
    assert "dark frames bridged" in step.sentences[1]
    with pytest.raises(ValueError, match="linked already"):
        step.link()
    session.put(movie=movie())
    with pytest.raises(ValueError, match="undo the step Link to explain"):
        InspectStep(session).explain(0)
    step.undo()
    assert torch.equal(at_hand(session).emitters.xyz, table.xyz)
    assert at_hand(session).ranges == {"frame": (None, 239)}
    assert session.is_saved
    assert step.done() == ""
    with pytest.raises(ValueError, match="no molecules were linked"):
        step.undo()


def test_a_gap_of_none_joins_no_dark_frames() -> None:
    step = LinkStep(opened(blinking()))
    step.settings = LinkSettings(gap=0)
    assert len(followed(step.link()).molecules) == 2 * N


def test_what_cannot_be_linked_is_said() -> None:
    with pytest.raises(ValueError, match="localize a movie or open a table first"):
        LinkStep(Session()).link()
    once = blinking()[torch.arange(0, 3 * N, 3)]
    with pytest.raises(Undetermined, match="hardly a molecule is seen in a second frame"):
        followed(LinkStep(opened(once)).link())
    session = opened(blinking())
    linked = followed(LinkStep(session).link())
    session.put(found=Found(filter=Filter(blinking()), source="other.csv"))
    with pytest.raises(ValueError, match="link these again"):
        LinkStep(session).accept(linked)


def test_drift_and_links_are_undone_in_reverse_order() -> None:
    table = blinking()
    session = opened(table)
    drift, link_step = DriftStep(session), LinkStep(session)
    assert session.found is not None
    xyz = np.zeros((N_FRAMES, 3))
    xyz[:, 0] = np.linspace(-5, 5, N_FRAMES)
    stage = Drift(xyz=xyz, sigma=np.zeros_like(xyz))
    drift.accept(Estimated(stage=stage, of=session.found.identity, plot=b""))
    drift.subtract()
    link_step.accept(followed(link_step.link()))
    assert session.found.applied == ("drift", "link")
    assert "table_still_molecules.parquet" in ExportStep(session).as_command()
    assert "table_still.parquet -o table_still_molecules" in link_step.as_command()
    assert "table.parquet -o table_still.parquet" in drift.as_command()
    assert not drift.can_undo
    with pytest.raises(ValueError, match="undo the step Link first"):
        drift.undo()
    link_step.undo()
    drift.undo()
    assert torch.equal(at_hand(session).emitters.xyz, table.xyz)
    link_step.accept(followed(link_step.link()))
    assert not drift.can_subtract  # it was estimated from other rows


def movie() -> OpenedMovie:
    return OpenedMovie(
        path=Path("movie.tif"),
        shape=(N_FRAMES, 256, 256),
        pixel_size_nm=100.0,
        camera=None,
        camera_name=None,
    )


def test_a_refit_says_what_it_needs_and_names_its_files() -> None:
    session, camera = opened(blinking()), sample_file("camera.yaml")
    step = LinkStep(session)
    step.settings = LinkSettings(refit=True)
    assert "movie" in step.why_not_refit()
    session.put(movie=movie())
    assert "PSF" in step.why_not_refit()
    session.put(psf=ChosenPSF(path=Path("psf.h5"), file=cast(Any, None)))
    assert "camera" in step.why_not_refit()
    with pytest.raises(ValueError, match="state the camera"):
        step.link()
    known = replace(movie(), camera=read_camera(camera), camera_name=str(camera))
    session.put(movie=known)
    assert step.why_not_refit() == ""
    files = ["--movie", "movie.tif", "--psf", "psf.h5", "--camera", str(camera)]
    assert shlex.split(step.as_command())[-6:] == files
    assert f"camera=read_camera({str(camera)!r})" in step.as_python()
    with pytest.raises(FileNotFoundError, match=r"(movie\.tif|psf\.h5)"):
        followed(step.link())
    session.put(movie=replace(known, shape=(N_FRAMES, 64, 64)))
    with pytest.raises(ValueError, match="of another movie"):
        step.link()


def test_what_is_copied_does_what_the_window_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(blinking(), "table.parquet")
    session = opened(read_table("table.parquet"))
    step = LinkStep(session)
    step.settings = LinkSettings(gap=2)
    at_hand(session).restrict("frame", 0, 239)
    step.accept(followed(step.link()))
    for line in step.as_command().split(" && "):
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    shown = at_hand(session).emitters
    written = read_table("table_molecules.parquet")
    torch.testing.assert_close(written.xyz, shown.xyz, check_dtype=False)
    names: dict[str, Any] = {}
    Path("table_molecules.parquet").unlink()
    exec(compile(step.as_python(), "link", "exec"), names)
    torch.testing.assert_close(names["molecules"].xyz, shown.xyz, check_dtype=False)
    assert len(read_table("table_molecules.parquet")) == len(shown)


def test_the_verb_takes_molecules_in_memory() -> None:
    molecules, linking = link(blinking())
    assert len(molecules) == linking.n_molecules == N
