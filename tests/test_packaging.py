"""What is installed is whole: a wheel in a clean environment localizes, and napari finds it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

from decode.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LARGEST_WHEEL = 15_000_000
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}

SEEN_BY_NAPARI = """
from npe2 import PluginManager
manager = PluginManager()
manager.discover()
manifest = manager.get_manifest("decode-smlm")
print(len(manifest.contributions.widgets), len(manifest.contributions.sample_data))
"""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[ <>=!\[;]", each)[0].lower() for each in requirements}


def test_the_version_is_stated_once() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((ROOT / "packaging" / "conda-forge.yaml").read_text())
    stated = {PROJECT["version"], citation["version"], recipe["context"]["version"]}
    assert stated == {__version__}


def test_the_conda_recipe_needs_what_the_wheel_needs() -> None:
    recipe = yaml.safe_load((ROOT / "packaging" / "conda-forge.yaml").read_text())
    wanted = {CONDA_NAMES.get(name, name) for name in names(PROJECT["dependencies"])}
    assert names(recipe["requirements"]["run"]) - {"python"} == wanted


def test_the_container_copies_what_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    sources = [source for line in copied for source in line.split()]
    assert "decode" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def run(*command: object, cwd: Path, timeout: float = 900) -> str:
    """The output of a command that ends well, without the environment of these tests."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_wheel_in_a_clean_environment_localizes(tmp_path: Path) -> None:
    for name in ("decode", "napari_plugin", "sample_data", "pyproject.toml", "README.md"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    shutil.copy(ROOT / "LICENSE", tmp_path)
    built = tmp_path / "dist"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", built, ".", cwd=tmp_path)
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size <= LARGEST_WHEEL

    elsewhere = tmp_path / "elsewhere"
    venv.create(elsewhere / "env", with_pip=True)
    bin_ = elsewhere / "env" / ("Scripts" if os.name == "nt" else "bin")
    constraints = ROOT / "constraints.txt"
    run(bin_ / "pip", "install", "-q", "-c", constraints, wheel, "npe2", cwd=elsewhere)
    assert "FAILED" not in run(bin_ / "decode", "doctor", cwd=elsewhere)
    sample = ROOT / "sample_data"
    movie, camera = sample / "blinking_2d.tif", sample / "camera.yaml"
    given = ("--model", "gaussian-2d", "--camera", camera, "-o", "out")
    assert "molecules in 200 frames" in run(
        bin_ / "decode", "localize", movie, *given, cwd=elsewhere
    )
    assert (elsewhere / "out" / "blinking_2d.csv").stat().st_size > 100_000
    widgets, samples = run(bin_ / "python", "-c", SEEN_BY_NAPARI, cwd=elsewhere).split()
    assert int(widgets) >= 1
    assert int(samples) >= 2
