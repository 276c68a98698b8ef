"""From raw single-molecule blinking movies to super-resolved molecules with honest uncertainties.

Nouns and verbs are here.  A verb takes files or arrays and returns its result:
`decode.localize(movie, model=...)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from decode.version import __version__ as __version__

if TYPE_CHECKING:
    from decode.emitters import EmitterSet
    from decode.forward import ForwardModel
    from decode.io.cameras import CameraFile, read_camera, write_camera
    from decode.io.movies import Movie, RawLayout, Selection, open_movie, write_movie
    from decode.io.tables import read_table, write_table
    from decode.metrics import score
    from decode.models import load_model
    from decode.network.localizer import Localizer
    from decode.network.posterior import SetPosterior
    from decode.optics.camera import Camera
    from decode.optics.gaussian import GaussianPSF
    from decode.optics.pupil import PupilPSF
    from decode.optics.spline import SplinePSF
    from decode.priors.scene import Scene
    from decode.rendering import Rendering
    from decode.verbs.batch import batch
    from decode.verbs.calibrate_camera import calibrate_camera
    from decode.verbs.calibrate_checks import calibrate_checks
    from decode.verbs.calibrate_model import calibrate_model
    from decode.verbs.calibrate_psf import calibrate_psf
    from decode.verbs.check_table import check_table
    from decode.verbs.convert import convert
    from decode.verbs.drift import drift
    from decode.verbs.estimate import estimate
    from decode.verbs.evaluate import evaluate
    from decode.verbs.link import link
    from decode.verbs.localize import localize
    from decode.verbs.quality import assess
    from decode.verbs.render import render
    from decode.verbs.report import report
    from decode.verbs.run import run
    from decode.verbs.simulate import simulate
    from decode.verbs.train import train
    from decode.verbs.watch import watch

__all__ = [
    "Camera",
    "CameraFile",
    "EmitterSet",
    "ForwardModel",
    "GaussianPSF",
    "Localizer",
    "Movie",
    "PupilPSF",
    "RawLayout",
    "Rendering",
    "Scene",
    "Selection",
    "SetPosterior",
    "SplinePSF",
    "assess",
    "batch",
    "calibrate_camera",
    "calibrate_checks",
    "calibrate_model",
    "calibrate_psf",
    "check_table",
    "convert",
    "drift",
    "estimate",
    "evaluate",
    "link",
    "load_model",
    "localize",
    "open_movie",
    "read_camera",
    "read_table",
    "render",
    "report",
    "run",
    "score",
    "simulate",
    "train",
    "watch",
    "write_camera",
    "write_movie",
    "write_table",
]

_HOME = {
    "Camera": "optics.camera",
    "CameraFile": "io.cameras",
    "EmitterSet": "emitters",
    "ForwardModel": "forward",
    "GaussianPSF": "optics.gaussian",
    "Localizer": "network.localizer",
    "Movie": "io.movies",
    "PupilPSF": "optics.pupil",
    "RawLayout": "io.movies",
    "Rendering": "rendering",
    "Scene": "priors.scene",
    "Selection": "io.movies",
    "SetPosterior": "network.posterior",
    "SplinePSF": "optics.spline",
    "assess": "verbs.quality",
    "batch": "verbs.batch",
    "calibrate_camera": "verbs.calibrate_camera",
    "calibrate_checks": "verbs.calibrate_checks",
    "calibrate_model": "verbs.calibrate_model",
    "calibrate_psf": "verbs.calibrate_psf",
    "check_table": "verbs.check_table",
    "convert": "verbs.convert",
    "drift": "verbs.drift",
    "estimate": "verbs.estimate",
    "evaluate": "verbs.evaluate",
    "link": "verbs.link",
    "load_model": "models",
    "localize": "verbs.localize",
    "open_movie": "io.movies",
    "read_camera": "io.cameras",
    "read_table": "io.tables",
    "render": "verbs.render",
    "report": "verbs.report",
    "run": "verbs.run",
    "score": "metrics",
    "simulate": "verbs.simulate",
    "train": "verbs.train",
    "watch": "verbs.watch",
    "write_camera": "io.cameras",
    "write_movie": "io.movies",
    "write_table": "io.tables",
}


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import: it waits until a name is asked for; `decode --help` does not
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
