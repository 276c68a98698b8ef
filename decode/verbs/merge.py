"""merge: the shares of a movie to its tables and its picture."""

from __future__ import annotations

from pathlib import Path

from decode.emitters import EmitterSet
from decode.progress import DetailedSteps, Progress, Stepwise
from decode.verbs.localize import Localized, LocalizeReport, assembled
from decode.verbs.order import shared

__all__ = ["merge", "unfinished_in"]


@Stepwise
def merge(folder: Path | str) -> DetailedSteps[LocalizeReport | None, Localized]:
    """Write tables and picture of a movie that was localized in shares.

    They are to the last value those of `localize_file` without shares, in the same place.
    `merge.steps` does the same step by step.

    Args:
        folder: `<movie>.parts`, in which all shares left their molecules; it is deleted.

    Raises:
        ValueError: if there is no such work, or a share is not done.
        OSError: if the movie cannot be read, or a file not be written.
    """
    yield Progress(0.0, "looking at the pieces", detail=None)
    with shared(Path(folder)) as (pieces, work):
        missing = pieces.missing()
        if missing:
            frames = ", ".join(f"{run.start} to {run.stop - 1}" for run in missing)
            raise ValueError(
                f"{folder}: frames {frames} (counted from the first chosen one) are not localized "
                "yet; run their --shard again"
            )
        report = LocalizeReport(
            acquisition=work.acquisition,
            molecules=EmitterSet.empty(),
            n_molecules=pieces.count(),
            frames_done=pieces.frames_done,
            frames_total=pieces.frames_done,
        )
        yield Progress(1.0, "writing tables", work.acquisition.warnings, report)
        return (yield from assembled(pieces, work, report))


def unfinished_in(folder: Path | str) -> tuple[Path, ...]:
    """The folders of unfinished work: this one, or those in it.

    Raises:
        ValueError: if there are none.
    """
    folder = Path(folder)
    found = [folder] if folder.suffix == ".parts" else sorted(folder.glob("*.parts"))
    if not found or not all(each.is_dir() for each in found):
        raise ValueError(f"{folder} holds no shares of a movie (<movie>.parts)")
    return tuple(found)
