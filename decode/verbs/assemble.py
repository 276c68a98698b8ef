"""assemble: the pieces of a movie to its tables and its picture, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from decode.emitters import Check, EmitterSet, Facts
from decode.errors import in_plain_words, is_out_of_memory
from decode.io.tables import written_formats
from decode.io.tables.together import TableWriters
from decode.progress import Progress, Steps
from decode.rendering import Spool, save_spooled
from decode.verbs.checking import Checking
from decode.verbs.pieces import Pieces
from decode.verbs.sweep import Chunk

__all__ = ["assemble"]


def assemble(
    pieces: Pieces,
    files: Sequence[Path],
    draws: Sequence[Sequence[Path]],
    facts: Facts,
    checking: Checking,
    numbered: Callable[[EmitterSet], EmitterSet],
) -> Steps[tuple[Check, ...]]:
    """Write tables and picture of a movie whose pieces are all there, and delete these.

    Args:
        pieces: the molecules.
        files: tables, and the picture if one is wanted.
        draws: tables of each draw.
        facts: of the movie; the checks are added.
        checking: sees all molecules.
        numbered: gives molecules the frame numbers of the file.

    Returns:
        The checks.

    Raises:
        OSError: if a file cannot be written; it names the others, and the pieces stay.
    """
    picture = next((file for file in files if file.suffix == ".png"), None)
    assert facts.field_nm is not None
    spool = None if picture is None else Spool(pieces.scratch(), field_nm=facts.field_nm)
    stated = facts.metadata()
    with ExitStack() as opened:
        tables, *sampled = every = [
            opened.enter_context(TableWriters(_tables(each), stated)) for each in (files, *draws)
        ]
        for piece, molecules in pieces.read():
            tables.write(numbered(molecules))
            for table, sample in zip(sampled, pieces.samples_of(piece), strict=True):
                table.write(numbered(sample))
            n_frames = pieces.all[-1].stop
            checking.see(Chunk(molecules=molecules, frames_done=piece.stop, frames_total=n_frames))
            if spool is not None:
                spool.add(molecules)
            yield Progress(piece.stop / n_frames, "writing tables")
        checks = checking.checks
        stated |= replace(facts, checks=checks).metadata()
    failures = [failure for table in every for failure in table.failures]
    if picture is not None and spool is not None:
        failures += yield from _drawn(spool, picture)
    if failures:
        kept = ", ".join(str(file) for table in every for file in table.written) or "nothing"
        raise OSError("; ".join([*failures, f"written: {kept}"]))
    pieces.remove()
    return checks


def _tables(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix in written_formats()]


def _drawn(spool: Spool, picture: Path) -> Steps[list[str]]:
    """Save the picture; returns why it could not be saved."""
    try:
        yield from save_spooled.steps(spool, picture)
    except Exception as error:
        if is_out_of_memory(error):
            return [f"cannot draw {picture}: there is not enough memory"]
        if isinstance(error, OSError):
            return [in_plain_words(error)]
        raise
    return []
