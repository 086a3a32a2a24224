"""Boxes of parameters, the cells they are cut into, and points spread over them.

A box is (2, d), its lower corner first. Points of a product come first coordinate slowest, as
`indexing="ij"` and `map.flatten()` have it.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from lib.geometry.checks import Values, float64, require_finite, require_whole


def as_box(box: Values) -> Tensor:
    """The box as float64 (2, d); ValueError unless finite, the lower corner first."""
    box = float64(box, "box")
    if box.ndim != 2 or len(box) != 2 or not (box[1] > box[0]).all():
        raise ValueError(f"box={box.tolist()}; give finite numbers (2, d), the lower corner first")
    require_finite("box", box)
    return box


def in_box(t: Values, box: Values) -> tuple[Tensor, Tensor]:
    """t (n, d) and its box (2, d), float64 on the device of t; ValueError where t lies outside.

    A corner that went through single precision belongs to the box and is moved onto it.
    """
    t, box = float64(t, "t"), as_box(box)
    if t.ndim != 2 or box.shape[1] != t.shape[1]:
        raise ValueError(
            f"box={box.tolist()} for t of shape {tuple(t.shape)}: t is (n, d) and box (2, d)"
        )
    require_finite("t", t)
    box = box.to(t.device)
    slack = 2 * torch.finfo(torch.float32).eps * box.abs().amax(0)
    outside = ((t < box[0] - slack) | (t > box[1] + slack)).any(1)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} rows of t lie outside the box {box.tolist()}, the first at "
            f"t={t[outside][0].tolist()}; give the box of these parameters or drop the rows"
        )
    return t.clamp(box[0], box[1]), box


def warn_uneven(t: Tensor, box: Tensor) -> None:
    """Warn where parameters in the box are far from uniform: the prior of an estimator is."""
    u = ((t - box[0]) / (box[1] - box[0])).sort(0).values
    share = torch.arange(len(u) + 1, dtype=u.dtype, device=u.device)[:, None] / len(u)
    apart = torch.maximum((share[1:] - u).amax(0), (u - share[:-1]).amax(0))
    if apart.max() > 0.1 + 2 / len(u) ** 0.5:
        warnings.warn(
            f"coordinate {int(apart.argmax())} of t is not uniform in the box {box.tolist()} (its "
            f"distribution function is off by {apart.max().item():.2f}); the fit takes the prior "
            "to be uniform: draw t uniformly, or give the box that it fills",
            stacklevel=3,
        )


def unit_square(t: Values, box: Values) -> Tensor:
    """t (n, 2) in units of the box (2, 2), float64; ValueError outside it or on wrong shapes."""
    t, box = in_box(t, box)
    if t.shape[1] != 2:
        raise ValueError(f"t has {t.shape[1]} columns; a map is over two parameters, give (n, 2)")
    return (t - box[0]) / (box[1] - box[0])


def mesh(box: Tensor, fractions: Tensor) -> Tensor:
    """Points lo + fraction · (hi − lo) of the product of (d, g) fractions per axis, (g^d, d)."""
    axes = box[0, :, None] + (box[1] - box[0])[:, None] * fractions.to(box)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def centres(box: Values, grid: int) -> Tensor:
    """Centres of grid^d equal cells of the box, float64 (grid^d, d)."""
    box = as_box(box)
    require_whole(1, grid=grid)
    return mesh(box, cell_centres(grid).expand(box.shape[1], -1))


def box_grid(box: Values, points: int) -> np.ndarray:
    """Centres of points^d equal cells of the box as an array, (points^d, d)."""
    return centres(box, points).numpy(force=True)


def cell_centres(grid: int) -> Tensor:
    """Centres of `grid` equal cells of the unit interval, float64 (g,)."""
    return (torch.arange(grid, dtype=torch.float64) + 0.5) / grid


def cells(grid: int) -> Tensor:
    """Centres of the cells of a map in the unit square, float64 (g², 2), as `map.flatten()`."""
    return centres(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), grid)


def uniform_box(box: Values, n: int, seed: int) -> np.ndarray:
    """n points uniform in the box, (n, d); the prior of all estimators."""
    require_whole(0, n=n, seed=seed)
    low, high = as_box(box).numpy(force=True)
    return np.random.default_rng(seed).uniform(low, high, (n, len(low)))
