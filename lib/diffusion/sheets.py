"""Sheets of many small images as one array, coarse enough in colour to stay small as a PNG."""

import numpy as np
import torch
from torch import Tensor


def sheet(images: Tensor, *, shades: int = 12) -> np.ndarray:
    """One picture (rows · h, columns · w, 3) uint8 of images (rows, columns, 3, h, w) in [−1, 1].

    The first row is the upper one. Each colour has `shades` values: noise that no eye sees is most
    of a PNG. Values outside [−1, 1] are cut. Raises ValueError for another shape, values that are
    not finite and shades outside 2 … 256.
    """
    images = torch.as_tensor(images).detach().cpu()
    if images.ndim != 5 or images.shape[2] != 3 or images.numel() == 0:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected (rows, columns, 3, h, w): "
            "unflatten a batch, or add an axis for a single row"
        )
    if not 2 <= shades <= 256 or not bool(images.isfinite().all()):
        raise ValueError(f"shades = {shades}: choose 2 ... 256, and give finite images")
    rows, columns, _, h, w = images.shape
    picture = images.permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    level = ((picture.clamp(-1, 1) + 1) / 2 * (shades - 1)).round() / (shades - 1)
    return (255 * level).round().to(torch.uint8).numpy()


def by_coordinates(images: Tensor) -> Tensor:
    """Images (α, β, 3, h, w) of a grid in the order of a sheet: α to the right, β upwards."""
    return images.transpose(0, 1).flip(0)
