"""h-space, the semantic latent space of a frozen diffusion model: taps, shifts, edits (Asyrp)."""

from lib.hspace.deltas import Delta, combine, constant, per_step
from lib.hspace.editing import Edit, asyrp, edit, predictions, reconstruct, scaled, sufficient
from lib.hspace.taps import MIDDLE, capture, h_shape, inject
