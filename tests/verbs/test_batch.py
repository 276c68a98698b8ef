"""Many movies of a job file: what fails costs one movie, what is done is passed over."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from typer.testing import CliRunner, Result

from decode.cli import app
from decode.emitters import EmitterSet
from decode.io.movies import write_movie
from decode.io.tables import read_table
from decode.network.localizer import Localizer, NetworkConfig
from decode.network.record import ModelRecord
from decode.verbs.batch import Batch, JobError, batch, load_job, plan, slurm_script
from decode.verbs.batch.localization import MOST_SEEN, Typical
from decode.verbs.batch.search import Search
from decode.verbs.batch.worker import Worker
from decode.verbs.localize import localize_file
from decode.verbs.schema import schema

ROOT = Path(__file__).parents[2]
CAMERA = {"pixel_size_nm": 100, "baseline": 100, "e_per_adu": 0.5, "qe": 0.8, "read_noise_e": 1.5}
OPTIONS = {"model": "model.safetensors", "camera": "camera.yaml", "psf_sigma_nm": 130}
SHAPE = (16, 32, 32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def movie(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_movie(path, np.random.default_rng(seed).poisson(60.0, SHAPE) + 100)
    return path


def job_file(folder: Path, **content: Any) -> Path:
    path = folder / "job.yaml"
    whole = {"movies": ["raw"], "recursive": True, "out": "out", "localize": OPTIONS} | content
    path.write_text(yaml.safe_dump(whole))
    return path


def bench(folder: Path) -> Path:
    """A camera, and an untrained model that sees many molecules."""
    torch.manual_seed(5)
    network = NetworkConfig(frame_widths=(8, 8), sequence_widths=(8, 8), head_width=8)
    model = Localizer(network, {"psf_sigma_px": (0.8, 2.0)})
    with torch.no_grad():
        assert model.out.bias is not None
        model.out.weight[0] *= 20
        model.out.bias[0] = 0
    model.record = ModelRecord(config={"description": "untrained"})
    model.save(folder / "model.safetensors")
    (folder / "camera.yaml").write_text(yaml.safe_dump(CAMERA))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    bench(tmp_path)
    movie(tmp_path / "raw" / "a.tif")
    movie(tmp_path / "raw" / "sub" / "b.tif", 1)
    return tmp_path


def broken(folder: Path) -> None:
    """A file that was cut short, one of text, and one with NaN."""
    (folder / "cut.tif").write_bytes(movie(folder / "cut.tif", 2).read_bytes()[:9000])
    (folder / "text.tif").write_text("no movie")
    counts = np.full(SHAPE, 160, np.float32)
    counts[7, 3, 3] = np.nan
    tifffile.imwrite(folder / "nan.tif", counts, photometric="minisblack")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Batch]:
    """A folder after a job with three broken movies and one whose process was killed."""
    folder = bench(tmp_path_factory.mktemp("night"))
    raw = folder / "raw"
    for i, name in enumerate(("0.tif", "a.tif", "sub/b.tif")):
        movie(raw / name, i)
    broken(raw)
    job = job_file(folder, overrides={"sub/*": {"threshold": 0.7}})
    begin = Worker.begin

    def killed(self: Worker, task: Any) -> None:
        begin(self, task)
        if task.name == "0.tif":
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "begin", killed)
        return folder, batch(job)


def test_what_fails_costs_one_movie(night: tuple[Path, Batch]) -> None:
    folder, done = night
    why = {row.movie: row.error or "" for row in done.rows}
    assert list(why) == ["0.tif", "a.tif", "cut.tif", "nan.tif", "text.tif", "sub/b.tif"]
    assert "was killed (SIGKILL" in why["0.tif"]
    assert "is cut short" in why["cut.tif"]
    assert "NaN" in why["nan.tif"]
    assert "is not a TIFF file" in why["text.tif"]
    assert not why["a.tif"] + why["sub/b.tif"]
    assert (folder / "out" / "a.csv").is_file()
    assert (folder / "out" / "sub" / "b.hdf5").is_file()
    assert not list(folder.rglob("nan.csv"))


def test_tables_are_those_of_localize(night: tuple[Path, Batch], tmp_path: Path) -> None:
    folder, done = night
    known = {"camera": folder / "camera.yaml", "psf_sigma_nm": 130.0, "threshold": 0.7}
    localize_file(
        folder / "raw" / "sub" / "b.tif",
        folder / "model.safetensors",
        tmp_path,
        camera=known["camera"],
        psf_sigma_nm=130.0,
        threshold=0.7,
        formats=["hdf5"],
    )
    alone, own = read_table(tmp_path / "b.hdf5"), read_table(folder / "out" / "sub" / "b.hdf5")
    torch.testing.assert_close(own.xyz, alone.xyz, rtol=0, atol=0)
    assert own.facts.threshold == 0.7
    assert read_table(folder / "out" / "a.hdf5").facts.threshold == 0.5
    row = done.rows[-1]
    assert row.molecules == len(own)
    assert row.photons == pytest.approx(float(own.photons.median()), rel=1e-3)
    area_um2 = 32 * 32 * 0.1**2
    assert row.density_per_um2 == pytest.approx(len(own) / (16 * area_um2), rel=1e-3)


def test_a_log_a_movie_says_what_happened(night: tuple[Path, Batch]) -> None:
    out = night[0] / "out"
    assert "molecules in 16 frames" in (out / "a.log").read_text()
    assert "holds NaN" in (out / "nan.log").read_text()
    assert "Traceback" in (out / "nan.log").read_text()
    assert "SIGKILL" in (out / "0.log").read_text()
    assert "is not a TIFF file" in (out / "text.log").read_text()  # which was known beforehand


def test_the_summary_has_a_row_a_movie(night: tuple[Path, Batch]) -> None:
    _, done = night
    table, page = done.files
    rows = {row["movie"]: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    assert len(rows) == 6
    assert rows["a.tif"]["molecules"] == str(done.rows[1].molecules)
    assert "cut short" in rows["cut.tif"]["error"]
    html = page.read_text(encoding="utf-8")
    assert "2 of 6 movies localized" in html
    assert 'href="sub/b.csv"' in html
    assert html.count("data:image/png;base64") == 2


def test_what_is_done_is_passed_over_and_what_changed_is_done_again(
    night: tuple[Path, Batch],
) -> None:
    folder, _ = night
    job = folder / "job.yaml"

    def waiting(**content: Any) -> set[str]:
        path = job_file(folder, **{"overrides": {"sub/*": {"threshold": 0.7}}} | content)
        return {task.name for task in plan(load_job(path)).tasks if task.done is None}

    failed = {"0.tif", "cut.tif", "nan.tif", "text.tif"}
    assert waiting() == failed
    assert waiting(localize=OPTIONS | {"device": "cpu"}) == failed  # the same molecules
    assert waiting(overrides={"sub/*": {"threshold": 0.8}}) == {*failed, "sub/b.tif"}
    assert waiting(localize=OPTIONS | {"link": True}) == {*failed, "a.tif", "sub/b.tif"}
    camera = folder / "camera.yaml"
    camera.write_text(yaml.safe_dump(CAMERA | {"qe": 0.7}))
    assert waiting() == {*failed, "a.tif", "sub/b.tif"}
    camera.write_text(yaml.safe_dump(CAMERA))
    raw = folder / "raw" / "a.tif"
    before = raw.stat()
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert waiting() == {*failed, "a.tif"}
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns))
    table = folder / "out" / "sub" / "b.csv"
    content = table.read_bytes()
    table.unlink()
    assert waiting() == {*failed, "sub/b.tif"}
    table.write_bytes(content)
    assert waiting() == failed
    assert job.is_file()


def test_localize_recursive_is_the_same_job(night: tuple[Path, Batch]) -> None:
    folder, _ = night
    result = run(
        *("localize", folder / "raw" / "sub", "--recursive", "-o", folder / "out" / "sub"),
        *("--model", folder / "model.safetensors", "--camera", folder / "camera.yaml"),
        *("--psf-sigma", 130, "--threshold", 0.7, "--json"),
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["movie"] == "b.tif"
    (folder / "out" / "sub" / "summary.csv").unlink()


def test_the_summary_alone_localizes_nothing(night: tuple[Path, Batch]) -> None:
    folder, _ = night
    result = run("batch", folder / "job.yaml", "--summary", "--json")
    assert result.exit_code == 1, result.output
    rows = {row["movie"]: row for row in json.loads(result.stdout)}
    assert "SIGKILL" in rows["0.tif"]["error"]
    assert "holds NaN" in rows["nan.tif"]["error"]
    assert rows["a.tif"]["molecules"] > 0


def test_recursive_refuses_what_is_of_single_movies(place: Path) -> None:
    known = ("--model", "gaussian-2d", "-o", place / "out", "--recursive")
    for more in (("--join",), ("--fresh",), ("--shard", "1/2"), ("--scheduler", "tcp://a:1")):
        result = run("localize", place / "raw", *known, *more)
        assert result.exit_code == 2, result.output
        assert "leave out --recursive" in result.stderr


def test_shares_hold_each_movie_once(place: Path) -> None:
    whole = plan(load_job(job_file(place)))
    names = [task.name for i in (1, 2, 3) for task in whole.share(i, 3).tasks]
    assert sorted(names) == sorted(task.name for task in whole.tasks)
    result = run("batch", place / "job.yaml", "--only", "3/2")
    assert result.exit_code == 2
    assert "share I of N" in result.stderr


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ({"moovies": []}, ["unknown key 'moovies'; is it movies?"]),
        ({"localize": {"modle": "x"}}, ["unknown key 'localize.modle'; is it model?"]),
        (
            {"overrides": {"a*": {"thresold": 1}}},
            ["unknown key 'overrides.a*.thresold'; is it threshold?"],
        ),
        ({"localize": OPTIONS | {"frames": 620}}, ["localize.frames: must be a text; put it"]),
        ({"localize": OPTIONS | {"formats": ["cvs"]}}, ["format 'cvs' is unknown"]),
        ({"version": 2}, ["version 2"]),
        (
            {
                "movies": ["raw", "nowhere.tif", "*.nd2"],
                "localize": {"model": "gausian-2d", "camera": "no.yaml"},
                "overrides": {"c*": {"threshold": 0.4}},
            },
            [
                "there is no file or folder",
                "fits no movie",
                "did you mean gaussian-2d?",
                "no.yaml",
                "'c*' fits none of the movies",
            ],
        ),
        ({"movies": ["raw", "raw/sub/b.tif", "other"]}, ["would both be written as"]),
        ({"out": "raw"}, ["never searched"]),
        ({"out": "camera.yaml/in"}, ["camera.yaml"]),
        ({"localize": {"camera": "camera.yaml"}}, ["state a model"]),
        ({"localize": OPTIONS | {"roi": "0:99,0:9"}}, ["a.tif: ", "b.tif: "]),
        ({"localize": OPTIONS | {"exact": True}}, ["a.tif: ", "needs a known PSF"]),
        ({"exclude": ["*"]}, ["leaves no movie"]),
    ],
)
def test_all_that_is_wrong_with_a_job_is_said_before_it_begins(
    place: Path, content: Mapping[str, Any], sentences: list[str]
) -> None:
    movie(place / "other" / "a.tif", 3)
    result = run("batch", job_file(place, **content))
    assert result.exit_code == 2, result.output
    for sentence in sentences:
        assert sentence in result.stderr
    assert all(line.startswith("decode: ") for line in result.stderr.splitlines())
    assert not (place / "out").exists()


def test_a_dry_run_lists_movies_and_faults(place: Path) -> None:
    broken(place / "raw")
    result = run("batch", job_file(place), "--dry-run")
    assert result.exit_code == 1, result.output
    told = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert told["sub/b.tif"] == f"to {place / 'out' / 'sub'}"
    assert "cut short" in told["cut.tif"]
    assert not (place / "out").exists()


def test_the_output_is_never_searched_and_patterns_keep_their_folders(place: Path) -> None:
    movie(place / "raw" / "out" / "left.tif")
    movie(place / "raw" / "beads.tif")
    job = job_file(place, movies=["raw/**/*.tif"], out="raw/out", exclude=["*beads*"])
    assert [task.name for task in plan(load_job(job)).tasks] == ["a.tif", "sub/b.tif"]


def test_a_folder_of_frames_is_one_movie(place: Path) -> None:
    for i in range(3):
        frame = np.full(SHAPE[1:], i, np.uint16)
        path = place / "raw" / "frames" / f"{i}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, frame)
    found = Search(recursive=True).sources(str(place / "raw"))
    assert [source.name for source in found] == ["a.tif", "frames", "sub/b.tif"]
    with pytest.raises(ValueError, match="recursive"):
        Search().sources(str(place))


def test_files_that_belong_to_one_series_are_one_movie(place: Path) -> None:
    for path in (place / "raw").rglob("*.tif"):
        path.unlink()
    counts = np.zeros((4, 32, 32), np.uint16)
    names = ["x_1.ome.tif", "x_2.ome.tif"]
    blocks = "".join(
        f'<TiffData FirstT="{2 * i}" IFD="0" PlaneCount="2"><UUID FileName="{name}">urn:uuid:'
        f"0000000{i}-0000-0000-0000-000000000000</UUID></TiffData>"
        for i, name in enumerate(names)
    )
    about = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:{uuid}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint16" SizeX="32" SizeY="32" SizeC="1" SizeZ="1" SizeT="4">'
        f'<Channel ID="Channel:0:0"/>{blocks}</Pixels></Image></OME>'
    )
    for i, name in enumerate(names):
        text = about.format(uuid=f"0000000{i}-0000-0000-0000-000000000000")
        pages = counts[2 * i : 2 * i + 2]
        tifffile.imwrite(
            place / "raw" / name, pages, description=text, metadata=None, photometric="minisblack"
        )
    (task,) = plan(load_job(job_file(place))).tasks
    assert (task.name, task.n_frames) == ("x_1.ome.tif", 4)


def test_medians_do_not_need_all_molecules() -> None:
    generator = torch.Generator().manual_seed(0)
    typical, every = Typical(), []
    for _ in range(8):
        photons = torch.rand(MOST_SEEN // 3, generator=generator)
        every.append(photons)
        n = len(photons)
        typical.see(EmitterSet(frame=torch.zeros(n).long(), xyz=torch.zeros(n, 3), photons=photons))
    assert typical.figures["photons"] == pytest.approx(float(torch.cat(every).median()), rel=0.01)
    assert sum(len(seen) for seen in typical._columns.values()) <= MOST_SEEN


def test_the_script_for_slurm_sends_a_task_a_movie_and_a_last_one(place: Path) -> None:
    options = {"mem": "16G", "time": "08:00:00"}
    job = job_file(place, slurm=options)
    script = run("batch", job, "--slurm")
    assert script.exit_code == 0, script.output
    assert script.stdout == slurm_script(job, place / "out", 2, options)
    sbatch = place / "sbatch"  # takes scripts as sbatch does, and keeps them
    sbatch.write_text(f'#!/bin/bash\ncat > "{place}/task$1"\necho 7\n')
    sbatch.chmod(0o755)
    environment = os.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    subprocess.run(["bash"], input=script.stdout, text=True, check=True, env=environment)
    assert "--summary" in (place / "task--dependency=afterany:7").read_text()
    task = (place / "task--parsable").read_text()
    assert "#SBATCH --array=1-2" in task
    assert "#SBATCH --mem=16G" in task


def test_the_schema_of_jobs_is_that_of_the_file() -> None:
    stored = json.loads((ROOT / "docs" / "job.schema.json").read_text())
    assert stored == json.loads(json.dumps(schema("job"))), (
        "make it again: decode schema job > docs/job.schema.json"
    )
    for part in (stored, *stored["$defs"].values()):
        assert part["additionalProperties"] is False
        assert all(key.get("description") for key in part["properties"].values())


def test_a_job_that_cannot_begin_names_every_fault(place: Path) -> None:
    with pytest.raises(JobError) as caught:
        batch(job_file(place, movies=["no.tif", "none.tif"]))
    assert len(caught.value.faults) == 2


def test_tasks_that_share_movies_hold_each_share_once(place: Path) -> None:
    whole = plan(load_job(job_file(place)))
    names = [task.name for i in (1, 2, 3) for task in whole.share(i, 3, shards=2).tasks]
    assert sorted(names) == [
        f"{name}, share {i} of 2" for name in ("a.tif", "sub/b.tif") for i in (1, 2)
    ]
    assert len({task.log for i in (1, 2, 3) for task in whole.share(i, 3, shards=2).tasks}) == 4
    script = run("batch", job_file(place, shards=2, slurm={"mem": "8G"}), "--slurm").stdout
    assert "--array=1-4" in script
    assert "--summary" not in script  # the last task puts the shares together
    assert script.count("--mem=8G") == 2


@pytest.mark.slow
def test_a_movie_that_tasks_shared_has_the_molecules_of_the_whole(tmp_path: Path) -> None:
    bench(tmp_path)
    counts = np.random.default_rng(0).poisson(60.0, (1100, 32, 32)) + 100
    (tmp_path / "raw").mkdir()
    write_movie(tmp_path / "raw" / "a.tif", counts)
    few = OPTIONS | {"threshold": 0.9, "drift": False, "link": False, "report": False}
    whole = batch(job_file(tmp_path, out="whole", localize=few)).rows[0]
    job = job_file(tmp_path, shards=2, localize=few)
    for i in (2, 1):
        (row,) = batch(job, only=(i, 2)).rows
        assert row.error is None
        assert not list(tmp_path.glob("out/*.csv"))
    (row,) = batch(job).rows
    assert row.error is None
    assert row.molecules == whole.molecules
    assert row.photons == whole.photons
    own, other = (read_table(tmp_path / name / "a.hdf5") for name in ("out", "whole"))
    torch.testing.assert_close(own.xyz, other.xyz, rtol=0, atol=0)


@pytest.mark.slow
def test_twenty_movies_of_which_three_are_broken(tmp_path: Path) -> None:
    bench(tmp_path)
    for i in range(17):
        movie(tmp_path / "raw" / f"day{i % 3}" / f"{i}.tif", i)
    broken(tmp_path / "raw")
    job = job_file(tmp_path, workers=2)
    first = run("batch", job, "--json")
    assert first.exit_code == 1, first.output
    rows = json.loads(first.stdout)
    assert len(rows) == 20
    assert sum(row["error"] is None for row in rows) == 17
    assert len(first.stderr.splitlines()) == 3
    tables = sorted((tmp_path / "out").rglob("*.csv"))
    assert len(tables) == 18  # with the summary
    before = {path: path.stat().st_mtime_ns for path in tables if path.name != "summary.csv"}
    second = run("batch", job, "--json")
    assert second.exit_code == 1
    assert len(second.stderr.splitlines()) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(place: Path) -> None:
    for i in range(60):
        movie(place / "raw" / f"{i:03}.tif", i)
    job = job_file(place)
    command = [sys.executable, "-m", "decode", "batch", str(job)]
    started = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    out = place / "out"
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.receipt.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130, told
    while group_lives(started.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(out.glob(".unfinished*"))
    done = [task for task in plan(load_job(job)).tasks if task.done]
    assert 3 <= len(done) < 62
