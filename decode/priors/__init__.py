"""Priors: what is drawn before a frame is rendered."""
