"""The files that each verb writes, and whether it may write them: checked before the work
begins."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from decode.atomic import check_writable, sweep
from decode.io.cameras import MAPS, camera_map
from decode.io.movies import movie_formats
from decode.io.movies.tiff import SUFFIXES as TIFF_SUFFIXES
from decode.io.tables import format_to_write, written_formats

__all__ = [
    "DEFAULT_FORMATS",
    "camera_beside",
    "camera_files",
    "check_outputs",
    "drift_files",
    "finished_files",
    "linked_file",
    "localize_files",
    "model_files",
    "output_formats",
    "psf_file",
    "psf_files",
    "quality_files",
    "recipe_files",
    "report_files",
    "run_files",
    "sample_files",
    "simulate_files",
    "table_files",
    "table_inputs",
    "undrifted_file",
    "unfinished_folder",
]

DEFAULT_FORMATS = ("csv", "hdf5", "png")
"""ThunderSTORM table, Picasso table (with its YAML) and picture, by their suffix"""


def output_formats() -> tuple[str, ...]:
    """Suffixes of all that molecules can be written as: tables, and the picture.

    >>> output_formats()[:3]
    ('csv', 'hdf5', 'png')
    """
    tables = (suffix.removeprefix(".") for suffix in written_formats())
    return tuple(dict.fromkeys((*DEFAULT_FORMATS, *tables)))


def check_outputs(
    outputs: Iterable[Path], *, inputs: Iterable[object] = (), folder: Path | None = None
) -> None:
    """Refuse outputs that a verb must not or cannot write, before it works.

    Refused are files that the verb also reads, and files that cannot be written.

    Temporary files of killed processes in the folders of the outputs are deleted.

    Args:
        outputs: all files that the verb may write.
        inputs: all files that it reads; objects that are no path of a file are ignored.
        folder: output folder, which the verb creates if it does not exist.

    Raises:
        ValueError: if an output is an input, by whatever name or link, or would overwrite another
            output.
        OSError: if an output cannot be written.
    """
    outputs = list(outputs)
    named = [Path(i) for i in inputs if isinstance(i, Path | str)]
    described = {
        suffix: each.sidecar for each in movie_formats() if each.sidecar for suffix in each.suffixes
    }
    named += [
        path.with_suffix(described[path.suffix.lower()])
        for path in named
        if path.suffix.lower() in described
    ]
    read = [path for path in named if path.exists()]
    _check_inputs(outputs, {_identity(path): path for path in read})
    _check_each_other(outputs)
    _check_folders(outputs, [path for path in read if path.is_dir()])
    _check_sidecars(outputs)
    for parent in {output.parent for output in outputs if output.parent.is_dir()}:
        sweep(parent)
    for output in outputs:
        if folder is not None and not folder.exists():
            _check_can_be_made(folder)
        else:
            check_writable(output)


def table_files(path: Path, name: str | None = None) -> tuple[Path, ...]:
    """A table to write, with its sidecar.

    Args:
        name: name of its format, where the suffix does not determine it.

    Raises:
        ValueError: if there is no such format, or the suffix says another one.
    """
    found = format_to_write(path, name)
    if found.suffixes and path.suffix.lower() not in found.suffixes:
        listed = " or ".join(found.suffixes)
        raise ValueError(f"{path}: {found.title} is written as {listed}; choose such a name")
    return (path,) if found.sidecar is None else (path, path.with_suffix(found.sidecar))


def table_inputs(path: Path) -> tuple[Path, ...]:
    """A table to read, with the sidecar that its format has."""
    sidecar = _sidecar(path)
    return (path,) if sidecar is None else (path, sidecar)


def _sidecar(table: Path) -> Path | None:
    found = written_formats().get(table.suffix.lower())
    if found is None or found.sidecar is None:
        return None
    return table.with_suffix(found.sidecar)


def camera_files(path: Path) -> tuple[Path, ...]:
    """A camera file and the maps that it may need."""
    _check_suffix(path, "cameras are", ".yaml", ".yml")
    return (path, *(camera_map(path, name) for name in MAPS.values()))


def psf_file(path: Path) -> Path:
    """A PSF's file.

    Raises:
        ValueError: if its suffix is another one.
    """
    _check_suffix(path, "PSFs are", ".h5", ".hdf5")
    return path


def psf_files(path: Path) -> tuple[Path, Path]:
    """A PSF and the report of its calibration."""
    return psf_file(path), path.with_suffix(".html")


def recipe_files(path: Path) -> tuple[Path, Path]:
    """An estimated recipe and the picture of real beside simulated frames."""
    _check_suffix(path, "recipes are", ".yaml", ".yml")
    return path, path.with_suffix(".png")


def camera_beside(path: Path) -> Path:
    """The camera file that goes with a simulated movie or an estimated recipe."""
    return path.with_name(f"{path.stem}_camera.yaml")


def model_files(path: Path) -> tuple[Path, Path, Path]:
    """A model, its record and the checkpoint of its training."""
    _check_suffix(path, "models are", ".safetensors")
    return path, path.with_suffix(".json"), path.with_suffix(".checkpoint")


def simulate_files(movie: Path, truth: Path) -> tuple[Path, ...]:
    """A movie, its molecules and its camera."""
    _check_suffix(movie, "movies are", *TIFF_SUFFIXES)
    _check_suffix(truth, "true molecules are", ".csv")
    return movie, truth, *camera_files(camera_beside(movie))


def localize_files(
    movie: Path, folder: Path, chosen: Sequence[str] = DEFAULT_FORMATS
) -> tuple[Path, ...]:
    """Tables and a picture in a folder, under the movie's name.

    Args:
        chosen: names from `output_formats`.

    Raises:
        ValueError: if a format is unknown, or there is none.
    """
    known = output_formats()
    unknown = sorted(set(chosen) - set(known))
    if unknown or not chosen:
        raise ValueError(
            f"format {unknown[0] if unknown else ''!r} is unknown; choose from {', '.join(known)}"
        )
    named = [folder / f"{_stem(movie)}.{suffix}" for suffix in known if suffix in chosen]
    return tuple(file for path in named for file in table_inputs(path))


def _stem(movie: Path) -> str:
    # the name of a folder has no suffix; `.` and `..` are folders, too
    return Path(os.path.abspath(movie)).name if movie.is_dir() else movie.stem


def unfinished_folder(movie: Path, folder: Path) -> Path:
    """The folder in which molecules wait until those of the whole movie are found.

    >>> unfinished_folder(Path("movie.tif"), Path("out")).name
    'movie.parts'
    """
    return folder / f"{_stem(movie)}.parts"


def sample_files(
    movie: Path, folder: Path, chosen: Sequence[str] = DEFAULT_FORMATS, number: int = 1
) -> tuple[tuple[Path, ...], ...]:
    """The tables of each draw of a posterior, beside those of `localize_files`.

    >>> sample_files(Path("movie.tif"), Path("out"), ["csv"], 2)[1][0].name
    'movie.sample-02.csv'

    Args:
        chosen: of `output_formats`; draws have no picture.
        number: number of draws.

    Raises:
        ValueError: if there are draws, but no format of tables.
    """
    tables = [suffix for suffix in chosen if suffix != "png"]
    if not number:
        return ()
    if not tables:
        raise ValueError("draws of the posterior are tables: choose a format of tables, as csv")
    whole = localize_files(movie, folder, tables)
    digits = max(2, len(str(number)))
    return tuple(
        tuple(path.with_name(f"{path.stem}.sample-{k:0{digits}d}{path.suffix}") for path in whole)
        for k in range(1, number + 1)
    )


def run_files(movie: Path, folder: Path) -> tuple[Path, ...]:
    """The files of all stages, and `run.json`, which records the inputs of each."""
    return (
        folder / "run.json",
        *psf_files(folder / "psf.h5"),
        *camera_files(folder / "camera.yaml"),
        *recipe_files(folder / "train.yaml"),
        *model_files(folder / "model.safetensors"),
        *localize_files(movie, folder),
    )


def finished_files(localized: Sequence[Path]) -> tuple[Path, ...]:
    """What may follow the tables and the picture of a movie: the same without drift, its trace,
    linked molecules, and a report.

    >>> [path.name for path in finished_files([Path("movie.csv")])][:2]
    ['movie.undrifted.csv', 'movie.undrifted.drift.csv']

    Args:
        localized: of `localize_files`.
    """
    tables = [path for path in localized if path.suffix in written_formats()]
    if not tables:
        return ()
    undrifted = [undrifted_file(path) for path in localized]
    linked = [linked_file(path) for table in tables for path in table_inputs(table)]
    page = report_files(tables[-1].with_suffix(".html"))
    return (*undrifted, *drift_files(undrifted_file(tables[-1])), *linked, *page)


def undrifted_file(path: Path) -> Path:
    """The twin of a table or a picture, with the drift subtracted."""
    return path.with_name(f"{path.stem}.undrifted{path.suffix}")


def linked_file(table: Path) -> Path:
    """The molecules of a table of localizations."""
    return table.with_name(f"{table.stem}.linked{table.suffix}")


def drift_files(table: Path) -> tuple[Path, Path]:
    """The drift that was subtracted from a table (CSV), and its plot, beside it."""
    return table.with_name(f"{table.stem}.drift.csv"), table.with_name(f"{table.stem}.drift.png")


def quality_files(folder: Path, n_lines: int = 0) -> tuple[Path, ...]:
    """The figures of a table (JSON), and their plots.

    >>> [path.name for path in quality_files(Path("out"), 1)][-1]
    'line-1.svg'
    """
    plots = ("resolution", "budget", "precision", "uncertainties", "distributions", "time")
    lines = (f"line-{i}" for i in range(1, n_lines + 1))
    return (
        folder / "quality.json",
        *(folder / f"{name}.svg" for name in plots),
        folder / "density.png",
        *(folder / f"{name}.svg" for name in lines),
    )


def report_files(page: Path) -> tuple[Path, Path]:
    """A report and its twin as JSON.

    >>> [path.name for path in report_files(Path("report.html"))]
    ['report.html', 'report.json']
    """
    _check_suffix(page, "reports are", ".html")
    return page, page.with_suffix(".json")


def _check_suffix(path: Path, what: str, *suffixes: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {what} written as {' or '.join(suffixes)}; choose such a name")


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of and links to a file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _check_inputs(outputs: Sequence[Path], read: Mapping[tuple[int, int], Path]) -> None:
    for output in outputs:
        if output.exists() and _identity(output) in read:
            raise ValueError(
                f"{output} would be written over {read[_identity(output)]}, which is read; choose "
                "another name or "
                "folder with --out"
            )


def _check_each_other(outputs: Sequence[Path]) -> None:
    """Two outputs may be one file, also on a disk that does not tell `A` from `a`."""
    seen: dict[str, Path] = {}
    for output in outputs:
        name = unicodedata.normalize("NFC", str(output.resolve())).casefold()
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {output} would overwrite each other; rename what is read, or "
                "choose another name or "
                "folder with --out"
            )
        seen[name] = output


def _check_folders(outputs: Sequence[Path], folders: Sequence[Path]) -> None:
    """A folder of one file a frame must not gain frames."""
    for output in outputs:
        for folder in folders:
            within = output.parent.exists() and output.parent.samefile(folder)
            if within and output.suffix.lower() in TIFF_SUFFIXES:
                raise ValueError(
                    f"{output} would be written into {folder}, whose files are read as frames; "
                    "choose another folder "
                    "with --out"
                )


def _check_sidecars(outputs: Sequence[Path]) -> None:
    """Refuse a table whose sidecar has the name of another file, as a camera or a recipe."""
    for table in outputs:
        sidecar = _sidecar(table)
        if sidecar is not None and sidecar in outputs and sidecar.exists() and not table.exists():
            raise ValueError(
                f"{sidecar} is there and belongs to no table, but would be overwritten by that of "
                f"{table}; choose another name or folder with --out"
            )


def _check_can_be_made(folder: Path) -> None:
    highest = [
        path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()
    ][-1]
    try:
        check_writable(highest)
    except OSError as error:
        where = highest.parent
        raise type(error)(
            f"cannot make the folder {folder} in {where}; choose another one with --out"
        ) from error
