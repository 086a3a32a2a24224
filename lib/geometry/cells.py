"""The cells of a posterior map: equal squares of the unit square, and the way into it."""

import torch
from torch import Tensor


def cell_centres(grid: int) -> Tensor:
    """Centres of `grid` equal cells of the unit interval, float64 (g,)."""
    return (torch.arange(grid, dtype=torch.float64) + 0.5) / grid


def cells(grid: int) -> Tensor:
    """Centres of the cells of a map in the unit square, float64 (g², 2), as `map.flatten()`."""
    return torch.cartesian_prod(cell_centres(grid), cell_centres(grid))


def unit_square(t, box) -> Tensor:
    """t (n, 2) in units of the box (2, 2), float64; ValueError outside it or on wrong shapes."""
    t = torch.as_tensor(t, dtype=torch.float64)
    box = torch.as_tensor(box, dtype=torch.float64).to(t.device)
    if t.ndim != 2 or t.shape[1] != 2 or box.shape != (2, 2) or not (box[1] > box[0]).all():
        raise ValueError(
            f"t has shape {tuple(t.shape)}, box is {box.tolist()}; give t (n, 2) and box (2, 2), "
            "the lower corner first"
        )
    u = (t - box[0]) / (box[1] - box[0])
    outside = ~((u > -1e-9) & (u < 1 + 1e-9)).all(1)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} rows of t are not in the box {box.tolist()}, the first is "
            f"{t[outside][0].tolist()}; give the box of these parameters or drop the rows"
        )
    return u.clamp(0, 1)
