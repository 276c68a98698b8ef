"""The verbs of `import decode`: files or arrays in, results out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import decode

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "gaussian-2d.yaml"
TINY = (
    "training.steps=2",
    "training.size_px=16",
    "training.movies=1",
    "network.frame_widths=[4]",
    "network.sequence_widths=[4]",
    "network.head_width=4",
)


def test_every_public_name_is_there_whatever_was_imported_before() -> None:
    """A module of the same name would hide a verb once it is imported."""
    script = (
        "import pkgutil, decode; modules = {m.name for m in "
        "pkgutil.iter_modules(decode.__path__)}; "
    )
    script += (
        "assert not modules & set(decode.__all__); [getattr(decode, name) for name in "
        "decode.__all__]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_simulated_movie_is_evaluated_and_drawn(tmp_path: Path) -> None:
    movie = decode.simulate(RECIPE, 4, size_px=32)
    truth = movie.emitters
    assert truth.facts.field_nm is not None
    result = decode.evaluate(truth, truth)
    assert result.jaccard == 1
    drawn = decode.render(truth, tmp_path / "picture.png")
    assert len(drawn) == len(truth)
    assert (tmp_path / "picture.png").is_file()
    decode.write_table(truth, tmp_path / "truth.csv")
    assert len(decode.render(tmp_path / "truth.csv", tmp_path / "again.png")) == len(truth)
    with pytest.raises(ValueError, match="the table does not say how large the field"):
        decode.evaluate(decode.EmitterSet.empty(), decode.EmitterSet.empty())


def test_a_picture_is_not_written_over_its_table(tmp_path: Path) -> None:
    table = tmp_path / "table.png"
    table.write_text("frame,x [nm],y [nm]\n1,2,3\n")
    with pytest.raises(ValueError, match="written over"):
        decode.render(table, table)


def test_training_returns_the_model_that_it_writes(tmp_path: Path) -> None:
    model = decode.train(RECIPE, tmp_path / "model.safetensors", settings=TINY, device="cpu")
    again = decode.load_model(tmp_path / "model.safetensors")
    assert model.context == again.context
    assert model.network.head_width == 4
