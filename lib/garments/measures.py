"""Attributes that a ruler finds on a photograph of a garment: no network, one number per image.

Images are float32 in [−1, 1], (n, 1, 32, 32), background −1. What a measure says of a garment
without that part (the sleeves of a shoe) means nothing; `TABLE` names the classes that have it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.garments.photographs import CLASSES

THRESHOLD = -0.8  # darker is background
UNDEFINED = -1
REACH = 5  # columns of a strip on either side, where sleeves hang


def brightness(images: Tensor) -> Tensor:
    """Mean grey value of the garment's pixels, (n,); −1 without any."""
    inside = images[:, 0] > THRESHOLD
    total = (images[:, 0] * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return total.where(inside.any(2).any(1), -1.0)


def shape(images: Tensor) -> Tensor:
    """Height over width of the smallest box around the garment, (n,); 0 for an empty image."""
    box = _box(images)
    return (box.bottom - box.top + 1) / (box.right - box.left + 1).clamp(min=1)


def sleeves(images: Tensor) -> Tensor:
    """Share of the outer strips of the lower half of the box that the garment fills, (n,).

    A short sleeve ends above the strips, a long one hangs down into them.
    """
    box = _box(images)
    strips = _strips(box)
    return (box.inside & strips).sum((1, 2)) / strips.sum((1, 2)).clamp(min=1)


def heel(images: Tensor) -> Tensor:
    """Mean height of the sole's middle over the ground in pixels, (n,): the arch before a heel.

    The middle is from 40 to 75 % of the way from toe (left) to heel.
    """
    box, place = _box(images), torch.arange(32, device=images.device)
    sole = 31 - box.inside.flip(1).float().argmax(1)  # the lowest lit row of each column
    way = (place - box.left[:, None]) / (box.right - box.left)[:, None].clamp(min=1)
    middle = (way > 0.4) & (way < 0.75) & box.inside.any(1)
    return ((box.bottom[:, None] - sole) * middle).sum(1) / middle.sum(1).clamp(min=1)


class Measure(NamedTuple):
    """A measure, the threshold that halves it, names below and above, and classes that have it."""

    of: Callable[[Tensor], Tensor]
    threshold: float
    names: tuple[str, str]
    classes: tuple[str, ...] = CLASSES


# thresholds: near the medians of the training photographs, between the modes of sleeves
TABLE = {
    "sleeves": Measure(sleeves, 0.5, ("short", "long"), ("T-shirt", "pullover", "coat", "shirt")),
    "heel": Measure(heel, 1.0, ("flat", "raised"), ("sandal", "sneaker", "boot")),
    "shape": Measure(shape, 1.25, ("wide", "tall")),
    "brightness": Measure(brightness, 0.28, ("dark", "bright")),
}


def labels(images: Tensor, kinds: Tensor) -> Tensor:
    """Class and side of every threshold, (n, 1 + measures); −1 where a class lacks the part."""
    columns = [kinds]
    for measure in TABLE.values():
        has = torch.tensor([kind in measure.classes for kind in CLASSES])[kinds]
        columns.append((measure.of(images) > measure.threshold).long().where(has, UNDEFINED))
    return torch.stack(columns, 1)


def without(images: Tensor, part: str) -> Tensor:
    """The photographs with one part taken away: what is left of a pair that differs in it alone.

    "sleeves": the strips of `sleeves` become background; "hem": the lowest fifth of the garment
    does; "shade": the garment goes down by a half, not below the threshold of background. Raises
    ValueError for another part.
    """
    box, place = _box(images), torch.arange(32, device=images.device)
    if part == "shade":
        darker = (images - 0.5).clamp(min=THRESHOLD + 0.02)
        return darker.where(box.inside[:, None], images)
    hem = 5 * (box.bottom[:, None] - place) < (box.bottom - box.top + 1)[:, None]
    gone = {"sleeves": _strips(box), "hem": hem[:, :, None]}.get(part)
    if gone is None:
        raise ValueError(f"part = {part!r}, expected 'sleeves', 'hem' or 'shade'")
    return images.masked_fill((gone & box.inside)[:, None], -1.0)


class _Box(NamedTuple):
    """Pixels of the garment (n, 32, 32), and the first and last row and column that hold one."""

    inside: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


def _box(images: Tensor) -> _Box:
    inside = images[:, 0] > THRESHOLD
    return _Box(inside, *_span(inside.any(2)), *_span(inside.any(1)))


def _strips(box: _Box) -> Tensor:
    """The outer strips of the lower half of the box, (n, 32, 32) bool."""
    place = torch.arange(32, device=box.left.device)
    inner = torch.minimum(place - box.left[:, None], box.right[:, None] - place)
    lower = (2 * place > (box.top + box.bottom)[:, None]) & (place <= box.bottom[:, None])
    return lower[:, :, None] & ((inner >= 0) & (inner < REACH))[:, None]


def _span(lit: Tensor) -> tuple[Tensor, Tensor]:
    """First and last lit place of (n, 32); 0 and −1 without any."""
    last = 31 - lit.flip(1).float().argmax(1)
    return lit.float().argmax(1), last.where(lit.any(1), -1)
