"""Sample movies: installed with the plugin, or those of the project's checkout."""

from __future__ import annotations

from pathlib import Path

from decode_napari.layers import LayerData, movie_layer

__all__ = ["blinking_2d", "blinking_3d", "sample_file"]


def sample_file(name: str) -> Path:
    """A file of the project's `sample_data`, wherever it was installed.

    Raises:
        FileNotFoundError: if it was not.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "sample_data", here.parents[1] / "sample_data"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the sample {name} is not installed; install decode-smlm again")


def blinking_2d() -> list[LayerData]:
    """200 frames of 64 x 64 pixels: filaments near focus."""
    return _movie("blinking_2d.tif")


def blinking_3d() -> list[LayerData]:
    """200 frames of 64 x 64 pixels: filaments over 1.2 um of depth, seen through an astigmatic
    lens."""
    return _movie("blinking_3d.tif")


def _movie(name: str) -> list[LayerData]:
    import yaml

    from decode.io.movies import open_movie

    camera = sample_file("camera.yaml")
    stated = yaml.safe_load(
        camera.read_text(encoding="utf-8")
    )  # `read_camera` would import PyTorch
    return [
        movie_layer(
            open_movie(sample_file(name)), float(stated["pixel_size_nm"]), camera=str(camera)
        )
    ]
