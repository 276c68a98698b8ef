"""render: a table of molecules to a picture."""

from __future__ import annotations

from pathlib import Path

from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.outputs import check_outputs, table_inputs
from decode.rendering import picture_file, save_picture

__all__ = ["render"]


def render(
    molecules: EmitterSet | Path | str,
    out: Path | str,
    *,
    pixel_size_nm: float | None = None,
) -> EmitterSet:
    """Write a picture: each molecule a Gaussian as wide as its uncertainty.

    `decode.rendering.render_image` gives the picture as an array, with more choices.

    Args:
        molecules: a table, or its file.
        out: PNG file.
        pixel_size_nm: side of a pixel, needed for a file in pixels that does not state it.

    Returns:
        The molecules that were drawn.

    Raises:
        ValueError: if the file is no table, or `out` no PNG.
        OSError: if a file cannot be read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drawn = render("sample_data/blinking_2d_truth.csv", f"{folder}/truth.png")
        >>> len(drawn)
        8919
    """
    out = picture_file(Path(out))
    if isinstance(molecules, EmitterSet):
        check_outputs([out])
    else:
        check_outputs([out], inputs=table_inputs(Path(molecules)))
        molecules = read_table(molecules, pixel_size_nm=pixel_size_nm)
    save_picture(molecules, out)
    return molecules
