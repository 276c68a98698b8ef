"""Light to counts and back: point spread functions, cameras and the information bound.
Differentiable and pure."""
