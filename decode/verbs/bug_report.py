"""bug-report: what a maintainer asks for first: versions, machine, settings; never data."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import takewhile
from pathlib import Path

__all__ = ["bug_report"]

SETTINGS = ("CUDA_", "MKL_", "NAPARI_", "OMP_", "PYTORCH_", "QT_", "SLURM_CPUS", "TORCH_")
"""beginnings of the names of environment variables that change how decode runs"""
LAST_LINES = 60
"""of a log"""


def bug_report(files: Sequence[str | Path] = ()) -> str:
    """Versions, machine and settings as Markdown, to be pasted where a fault is reported.

    It holds no pixel of a movie and no row of a table, and the home folder is written as `~`.  It
    works where PyTorch does not.

    Args:
        files: of recipes and camera files (.yaml) the text is added, of logs (.log, .out, .err) the
            last 60 lines, of anything else what it states of itself as a table: columns, facts and
            commands.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is neither of these.

    Example:
        >>> print(bug_report().splitlines()[0])
        ## decode 0.1.0
    """
    lines = [f"## decode {version('decode-smlm')}", "", *_machine(), "", "| package | version |"]
    lines += ["|---|---|", *(f"| {name} | {found} |" for name, found in _packages())]
    lines += ["", *_settings()]
    for file in map(Path, files):
        lines += ["", f"### {file.name}", "", "```text", *_content(file), "```"]
    return "\n".join(lines).replace(str(Path.home()), "~")


def _machine() -> Iterator[str]:
    yield f"- Python {platform.python_version()}, {platform.platform()}"
    yield f"- {os.cpu_count()} processor cores, {platform.machine()}"
    yield f"- {_device()}"


def _device() -> str:
    try:
        import torch

        from decode.devices import choose_device

        device = choose_device("auto")
        if device.type == "cuda":
            return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        return f"PyTorch sees no GPU; {torch.get_num_threads()} threads"
    except Exception as error:  # a broken installation is what is reported
        return f"PyTorch does not run: {' '.join(str(error).split())}"


def _packages() -> Iterator[tuple[str, str]]:
    """All that decode may need, by name, with the version that is installed."""
    named = {_name(requirement) for requirement in requires("decode-smlm") or ()}
    for name in sorted(named - {"decode-smlm"}, key=str.lower):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _name(requirement: str) -> str:
    """
    >>> _name("torch>=2.6; extra == 'x'")
    'torch'
    """
    return "".join(takewhile(lambda c: c.isalnum() or c in "-_.", requirement))


def _settings() -> Iterator[str]:
    found = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    yield "Settings: " + (", ".join(f"`{n}={v}`" for n, v in sorted(found.items())) or "none")


def _content(file: Path) -> list[str]:
    return _BY_SUFFIX.get(file.suffix.lower(), _facts)(file)


def _facts(table: Path) -> list[str]:
    """What a table states of itself; its rows stay where they are."""
    from decode.verbs.check_table import check_table

    found = check_table(table)
    stated = {**found.facts, **found.steps}
    return [
        f"{found.format}, {found.rows} rows, columns {', '.join(found.columns)}",
        *(f"{name}: {value}" for name, value in stated.items()),
        *found.problems,
    ]


def _text(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _end(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]


_BY_SUFFIX: dict[str, Callable[[Path], list[str]]] = {
    ".yaml": _text,
    ".yml": _text,
    ".log": _end,
    ".out": _end,
    ".err": _end,
}
