"""Training: a network fitted to simulations."""
