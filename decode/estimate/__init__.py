"""What a user did not state, estimated from the movie: nouns with an interval."""

from decode.estimate.camera import estimate_camera
from decode.estimate.frames import Estimate
from decode.estimate.psf_width import estimate_psf_sigma

__all__ = ["Estimate", "estimate_camera", "estimate_psf_sigma"]
