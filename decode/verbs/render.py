"""render: a table of molecules to a picture."""

from __future__ import annotations

from pathlib import Path

from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.outputs import check_outputs, table_inputs
from decode.progress import Progress, Steps, Stepwise, part
from decode.rendering import Rendering, picture_file, save_picture

__all__ = ["render"]


@Stepwise
def render(
    molecules: EmitterSet | Path | str,
    out: Path | str,
    rendering: Rendering | None = None,
    *,
    pixel_size_nm: float | None = None,
) -> Steps[EmitterSet]:
    """Write a picture of molecules.

    `decode.rendering.render_image` gives it as an array.  `render.steps` does the same step by
    step.

    Args:
        molecules: a table, or its file.
        out: its suffix says what is written: a picture in colours with scale bar and legend (.png,
            or .svg with marks that can be edited), or densities of any size (.tif, OME-TIFF).
        rendering: how; None: Gaussians as wide as the uncertainties, coloured by depth where there
            is some.
        pixel_size_nm: side of a pixel, needed for a file in pixels that does not state it.

    Returns:
        The molecules that were drawn.

    Raises:
        ValueError: if the file is no table, `out` no picture, or a setting does not fit the table.
        OSError: if a file cannot be read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table, out = "sample_data/blinking_3d_truth.csv", f"{folder}/truth.tif"
        ...     drawn = render(table, out, Rendering(color="z", view="xz"))
        >>> len(drawn)
        7338
    """
    out = picture_file(Path(out))
    inputs = () if isinstance(molecules, EmitterSet) else table_inputs(Path(molecules))
    check_outputs([out], inputs=inputs)
    yield Progress(0.0, "reading the molecules")
    if not isinstance(molecules, EmitterSet):
        molecules = read_table(molecules, pixel_size_nm=pixel_size_nm)
    yield from part(save_picture.steps(molecules, out, rendering), 0.0, 1.0)
    return molecules
