"""Two-dimensional slices of noise space: rendered, differentiated, and their phases studied."""

from lib.slices.plane import Slice, grid, jacobian, render

__all__ = ["Slice", "grid", "jacobian", "render"]
