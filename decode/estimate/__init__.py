"""What a user did not state, estimated from the movie: nouns with an interval."""

from decode.estimate.camera import CameraEstimate, estimate_camera
from decode.estimate.comparison import Comparison, compare, save_comparison
from decode.estimate.frames import Estimate
from decode.estimate.psf_width import estimate_psf_sigma
from decode.estimate.recipe import to_recipe
from decode.estimate.scene import SceneEstimate, estimate_scene

__all__ = [
    "CameraEstimate",
    "Comparison",
    "Estimate",
    "SceneEstimate",
    "compare",
    "estimate_camera",
    "estimate_psf_sigma",
    "estimate_scene",
    "save_comparison",
    "to_recipe",
]
