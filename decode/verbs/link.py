"""link: a table of localizations to one of molecules, their blinks joined."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path

from decode.acquisition import complete_acquisition, stated_camera, stated_files
from decode.conditioning import require_pixels_alike
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile
from decode.io.movies import WHOLE, Movie, Selection, open_movie
from decode.io.psfs import read_psf
from decode.io.tables import read_table, write_table
from decode.outputs import check_outputs, table_files, table_inputs
from decode.postprocess.drift.trace import STEP as DRIFT
from decode.postprocess.link import Linking, linked, merged, refitted
from decode.progress import DetailedSteps, Progress, Stepwise, part
from decode.verbs.room import require_room

__all__ = ["link"]

ROW_BYTES = 2200
"""of memory for each row of a table; 2000 were measured with a million rows"""


@Stepwise
def link(
    table: EmitterSet | Path | str,
    out: Path | str | None = None,
    *,
    gap: int | None = None,
    movie: Path | str | None = None,
    psf: Path | str | None = None,
    camera: CameraFile | Path | str | None = None,
    selection: Selection = WHOLE,
    rescale: bool = False,
    pixel_size_nm: float | None = None,
    seed: int = 0,
) -> DetailedSteps[None, tuple[EmitterSet, Linking]]:
    """Join the localizations that show one molecule over frames, and merge them.

    Blinks of a molecule are told by their distance against their uncertainties and the density of
    molecules, and by the kinetics of the table (`decode.postprocess.link.linked`).  A molecule is
    the mean of its rows, weighted by the inverse of their covariances (`merged`), or, with movie,
    PSF and camera, fitted to all of its frames with one position (`refitted`).  `link.steps` does
    the same step by step.

    Args:
        table: localizations, or a file of any format that `read_table` reads.
        out: table to write, a row a molecule; its suffix determines the format.  None writes
            nothing.
        gap: most dark frames to bridge; None: by the kinetics.
        movie, psf, camera: of the table, to refit the molecules; all or none.
        selection: channel, position and plane of a movie whose file holds several.
        rescale: multiply uncertainties by the scatter within molecules over the stated one.
        pixel_size_nm: side of a pixel, needed for a table in pixels that does not state it.
        seed: of the choice of rows for estimates where there are many.

    Returns:
        The molecules, with the columns `n_frames`, `first_frame`, `last_frame` (from 0),
        `off_gaps` and `link_probability`; and how rows were linked.

    Raises:
        Undetermined: if hardly a molecule is seen in a second frame.
        NoRoom: if the table is too large for the memory.
        ValueError, OSError: in one sentence, as for `read_table` and `write_table`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = Path(folder, "molecules.csv")
        ...     molecules, linking = link("sample_data/blinking_2d_truth.csv", out)
        >>> len(molecules) == linking.n_molecules < 8919
        True
    """
    name = "the table" if isinstance(table, EmitterSet) else str(table)
    if out is not None:
        named = [movie, psf, *stated_files(camera)]
        read = [] if isinstance(table, EmitterSet) else table_inputs(Path(table))
        check_outputs(table_files(Path(out)), inputs=[*read, *named])
    given = [each is not None for each in (movie, psf, camera)]
    if any(given) and not all(given):
        raise ValueError("to refit molecules, name their movie, its PSF and its camera")
    yield Progress(0.0, "reading the molecules")
    rows = (
        table if isinstance(table, EmitterSet) else read_table(table, pixel_size_nm=pixel_size_nm)
    )
    if any(given) and DRIFT in rows.metadata:
        raise ValueError(
            f"{name}: a drift was subtracted, and the molecules are no longer where the movie "
            "shows them; link the table before, then correct the drift"
        )
    require_room("linking", len(rows), ROW_BYTES, held=rows)
    yield Progress(0.05, "linking")
    linking = linked(rows, gap=gap, seed=seed)
    yield Progress(0.4, "merging")
    molecules = merged(rows, linking, rescale=rescale)
    if movie is not None and psf is not None and camera is not None:
        if selection.skip:
            raise ValueError(
                "molecules are refitted to the frames in which they are; leave out --skip"
            )
        with open_movie(movie, selection=selection) as frames:
            fit = _refit(rows, linking, molecules, frames=frames, psf=psf, camera=camera)
            molecules = yield from part(fit, 0.45, 0.95)
    if out is not None:
        yield Progress(0.95, "writing")
        write_table(molecules, Path(out))
    yield Progress(1.0, "")
    return molecules, linking


def _refit(
    rows: EmitterSet,
    linking: Linking,
    molecules: EmitterSet,
    *,
    frames: Movie,
    psf: Path | str,
    camera: CameraFile | Path | str,
) -> Generator[Progress[None], None, EmitterSet]:
    """The molecules fitted to their movie."""
    file = read_psf(psf)
    stated = stated_camera(camera, movie=frames)
    require_pixels_alike(file.psf.pixel_size_nm, stated.pixel_size_nm)
    acquired = complete_acquisition(
        frames, camera=stated.camera, pixel_size_nm=stated.pixel_size_nm, psf_known=True
    )
    yield Progress(0.0, "fitting molecules to the movie", acquired.warnings)
    depths = file.z_range_nm if file.psf.free_form else (-math.inf, math.inf)
    steps = refitted.steps(
        rows,
        linking,
        molecules,
        psf=file.psf.tabulated(file.z_range_nm),
        camera=acquired.camera,
        movie=frames,
        usual=acquired.usual,
        depths_nm=depths,
    )
    return (yield from steps)
