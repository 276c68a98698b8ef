"""Drift of the stage: estimated from molecules or fiducials, subtracted, added back."""

from decode.postprocess.drift.molecules import drift_of_fiducials, drift_of_molecules
from decode.postprocess.drift.trace import Drift, read_drift, write_drift

__all__ = ["Drift", "drift_of_fiducials", "drift_of_molecules", "read_drift", "write_drift"]
