"""Blinks of one molecule, joined over frames: kinetics, links, merged and refitted molecules."""

from decode.postprocess.link.kinetics import Kinetics
from decode.postprocess.link.merge import merged
from decode.postprocess.link.refit import refitted
from decode.postprocess.link.tracks import Linking, linked

__all__ = ["Kinetics", "Linking", "linked", "merged", "refitted"]
