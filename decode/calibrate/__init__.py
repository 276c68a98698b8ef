"""Calibrate the microscope: its PSF from beads, its camera from frames."""
