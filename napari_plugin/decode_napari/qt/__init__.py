"""The window: widgets show the steps and call them, and know nothing else."""
