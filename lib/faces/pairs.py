"""Pairs of faces that differ in one attribute and in nothing else.

The paired difference image is the attribute's pattern, exactly: what a prompt pair only suggests.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.faces import attributes, avatars, judge
from lib.faces.avatars import PARTS

COLOURED = ("long", "extraLong", "bobCut", "curly", "fade", "mohawk", "curlyHighTop")
BARE = ("",)
WITHHELD = ("e16381",)  # pink hair, which no diffusion model of the kit has seen


class Attribute(NamedTuple):
    """One part of a face, its variant without and with, and what other parts it needs."""

    part: str
    without: str
    present: str
    needs: dict[str, Sequence[str]] = {}


# Facial hair covers part of the mouth, hats all hair: left out where they would hide the pattern.
ATTRIBUTES = {
    "blond hair": Attribute("hair_colour", "2b1b17", "d9b26f", {"hair": COLOURED}),
    "glasses": Attribute("eyes", "open", "glasses"),
    "walrus beard": Attribute("facial_hair", "", "walrus"),
    "beanie": Attribute("hair", "fade", "beanie"),
    "big smile": Attribute("mouth", "frown", "bigSmile", {"facial_hair": BARE}),
    "smile": Attribute("mouth", "frown", "smile", {"facial_hair": BARE}),
    "grey hair": Attribute("hair_colour", "2b1b17", "9c9c9c", {"hair": COLOURED}),
    "dark skin": Attribute("skin", "eeb4a4", "623d36"),
}


class Task(NamedTuple):
    """An edit: which pair, with (1) or without (-1) its attribute, and what the judges look for."""

    pair: str
    sign: int
    head: str
    wanted: tuple[str, ...]
    text: str


BEARDS = ("goatee", "walrus", "pyramid")
TASKS = {  # two opposite pairs, like the paper's four tasks, then four more
    "with glasses": Task("glasses", 1, "eyewear", ("glasses",), "a face with glasses"),
    "without glasses": Task("glasses", -1, "eyewear", ("none",), "a face without glasses"),
    "smiling": Task("big smile", 1, "mouth", ("smile", "big smile"), "a face with a big smile"),
    "frowning": Task("big smile", -1, "mouth", ("frown",), "a face frowning"),
    "hat": Task("beanie", 1, "hat", ("yes",), "a face with a hat"),
    "beard": Task("walrus beard", 1, "facial_hair", BEARDS, "a face with a moustache"),
    "grey hair": Task("grey hair", 1, "hair_colour", ("grey",), "a face with grey hair"),
    "dark skin": Task("dark skin", 1, "skin", ("dark",), "a face with dark skin"),
}


class Pairs(NamedTuple):
    """The same faces without and with an attribute, each (n, 3, size, size) float32 in [-1, 1]."""

    without: Tensor
    present: Tensor


def render(attribute: str, n: int, *, size: int = 32, seed: int = 0) -> Pairs:
    """n random faces, rendered twice.

    Face i depends on seed and i alone; its other parts are the same for all attributes, but for
    those that the attribute needs. Raises ValueError for an unknown attribute or n < 1.
    """
    if attribute not in ATTRIBUTES or n < 1:
        raise ValueError(
            f"attribute {attribute!r}, n = {n}: choose one of {list(ATTRIBUTES)}, n >= 1"
        )
    part, without, present, needs = ATTRIBUTES[attribute]
    parts, jitter = _faces(n, seed)
    for name, allowed in needs.items():
        chosen = [list(PARTS[name]).index(variant) for variant in allowed]
        parts[:, _column(name)] = [chosen[_rng(seed, i, 1).integers(len(chosen))] for i in range(n)]
    images = []
    for variant in (without, present):
        parts[:, _column(part)] = list(PARTS[part]).index(variant)
        faces = avatars.Faces(parts.copy(), jitter)
        images.append(avatars.to_float(avatars.render_faces(faces, size, processes=1)))
    return Pairs(*images)


def judged(task: str, images: Tensor, source: Tensor) -> dict[str, np.ndarray]:
    """What an edit for a task did to source images, four numbers for each of n images, (n,) each.

    success: judge a sees a wanted class (0 or 1); off: `attributes.total_variation` of the others;
    distance: `judge.distance` to the source; clip: 100 max(cos, 0) of the kit's CLIP and the text.
    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}: choose one of {list(TASKS)}")
    _, _, head, wanted, text = TASKS[task]
    before, after = judge.attributes(source), judge.attributes(images)
    return {
        "success": _among(after[head], head, wanted).double().numpy(),
        "off": attributes.total_variation(before, after, head),
        "distance": judge.distance(source, images).double().cpu().numpy(),
        "clip": 100 * judge.clip_similarity(images, text).clamp(min=0).double().cpu().numpy(),
    }


def shows(images: Tensor, attribute: str) -> Tensor:
    """Where judge a sees an attribute of `ATTRIBUTES`, (n,) bool."""
    part, _, present, _ = ATTRIBUTES[attribute]
    ((head, value), *_) = PARTS[part][present][1].items()
    return _among(judge.attributes(images)[head], head, (value,))


def _among(probabilities: Tensor, head: str, wanted: Sequence[str]) -> Tensor:
    numbers = torch.tensor([judge.classes()[head].index(name) for name in wanted])
    return torch.isin(probabilities.argmax(1).cpu(), numbers)


def _rng(seed: int, face: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, face, purpose])


def _column(part: str) -> int:
    return list(PARTS).index(part)


def _faces(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random parts, every one of them set, and jitter."""
    rows, shifts = [], []
    spread = np.array(list(avatars.JITTER.values()))
    for i in range(n):
        rng = _rng(seed, i, 0)
        rows.append([_pick(rng, variants) for variants in PARTS.values()])
        shifts.append(rng.uniform(-1, 1, len(spread)) * spread)
    return np.array(rows, np.int8), np.array(shifts)


def _pick(rng: np.random.Generator, variants: dict) -> int:
    weights = np.array([w * (name not in WITHHELD) for name, (w, _) in variants.items()], float)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
