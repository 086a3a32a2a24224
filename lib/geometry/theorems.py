"""Theorem 3.2 in numbers: how far apart are two potentials in divergence, and in their Hessians?

    divergence gap   (∬ |e^{−D₁(t, t')} − e^{−D₂(t, t')}|² dt dt')^{1/2} over the box,
    Hessian gap      max ‖∇²φ₁ − ∇²φ₂‖ over the box.

An affine function changes neither. The theorem says that a vanishing first makes the second vanish.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.geometry.metric import fisher_metric
from lib.geometry.two_step import bregman

Potential = Callable[[Tensor], Tensor]


def divergence_gap(first: Potential, second: Potential, *, box, grid: int = 24) -> float:
    """Root mean square of e^{−D₁} − e^{−D₂} over pairs of cell centres of the box (2, d)."""
    t = _centres(box, grid)
    pairs = t.repeat_interleave(len(t), 0), t.repeat(len(t), 1)
    gap = torch.exp(-bregman(first, *pairs)) - torch.exp(-bregman(second, *pairs))
    return gap.detach().square().mean().sqrt().item()


def hessian_gap(first: Potential, second: Potential, *, box, grid: int = 24) -> float:
    """Largest Frobenius norm of ∇²φ₁ − ∇²φ₂ over the cell centres of the box (2, d)."""
    t = _centres(box, grid)
    gap = fisher_metric(first, t) - fisher_metric(second, t)
    return gap.detach().flatten(1).norm(dim=1).max().item()


def _centres(box, grid: int) -> Tensor:
    box = torch.as_tensor(box, dtype=torch.float64)
    if box.ndim != 2 or len(box) != 2 or not (box[1] > box[0]).all() or grid < 2:
        raise ValueError(
            f"box={box.tolist()}, grid={grid}; give (2, d), the lower corner first, and grid >= 2"
        )
    fractions = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    axes = [low + (high - low) * fractions for low, high in box.T]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))
