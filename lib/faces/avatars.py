"""The face set: DiceBear personas drawn from a seed, labelled, rasterised and cached.

Every part of a face is drawn independently of the others, so a correlation found in a generator
comes from the generator. Faces form one endless stream per seed; the hash of a face's parts sends
it to the training or to the held-out split, whatever the seed, so the splits share no label set.
"""

import hashlib
import json
import multiprocessing
import os
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.faces import portraits

CACHE = Path(__file__).resolve().parents[2] / "cache" / "avatars"
COUNTS = {"train": 60_000, "held-out": 12_000}
BLOCK = 1024

# part: {variant or colour: (weight, the classes it shows)}. Left out: hair that covers an eye
# (bobBangs, sideShave), carries pink or violet ties (buns, pigtails), shows no colour (buzzcut) or
# no clear length (balding); the beard that hides the mouth; skins between two of the tones.
PARTS = {
    "hair": {
        "long": (7, {"hair_length": "long", "hat": "no"}),
        "extraLong": (7, {"hair_length": "long", "hat": "no"}),
        "bobCut": (7, {"hair_length": "long", "hat": "no"}),
        "curly": (7, {"hair_length": "long", "hat": "no"}),
        "fade": (7, {"hair_length": "short", "hat": "no"}),
        "mohawk": (7, {"hair_length": "short", "hat": "no"}),
        "curlyHighTop": (7, {"hair_length": "short", "hat": "no"}),
        "shortCombover": (7, {"hair_length": "short", "hat": "no"}),
        "shortComboverChops": (7, {"hair_length": "short", "hat": "no"}),
        "bald": (13, {"hair_length": "none", "hat": "no"}),
        "beanie": (12, {"hat": "yes"}),
        "cap": (12, {"hat": "yes"}),
    },
    "hair_colour": {
        "2b1b17": (9, {"hair_colour": "dark"}),
        "4a2f20": (9, {"hair_colour": "dark"}),
        "7b4a2b": (9, {"hair_colour": "dark"}),
        "b5763a": (19, {"hair_colour": "red"}),
        "d9b26f": (19, {"hair_colour": "blond"}),
        "9c9c9c": (19, {"hair_colour": "grey"}),
        "e16381": (16, {"hair_colour": "pink"}),
    },
    "eyes": {
        "open": (25, {"eyewear": "none", "eyes": "open"}),
        "happy": (25, {"eyewear": "none", "eyes": "happy"}),
        "glasses": (28, {"eyewear": "glasses"}),
        "sunglasses": (22, {"eyewear": "sunglasses"}),
    },
    "mouth": {
        "smile": (1, {"mouth": "smile"}),
        "bigSmile": (1, {"mouth": "big smile"}),
        "frown": (1, {"mouth": "frown"}),
    },
    "facial_hair": {
        "": (49, {"facial_hair": "none"}),
        "goatee": (21, {"facial_hair": "goatee"}),
        "walrus": (15, {"facial_hair": "walrus"}),
        "pyramid": (15, {"facial_hair": "pyramid"}),
    },
    "facial_hair_colour": {
        colour: (1, {}) for colour in ("2b1b17", "4a2f20", "7b4a2b", "b5763a", "d9b26f", "9c9c9c")
    },
    "skin": {
        "eeb4a4": (13, {"skin": "light"}),
        "e7a391": (13, {"skin": "light"}),
        "e5a07e": (13, {"skin": "light"}),
        "b16a5b": (31, {"skin": "middle"}),
        "623d36": (30, {"skin": "dark"}),
    },
    "background": {
        colour: (1, {}) for colour in ("cfe3f5", "f5e0cf", "d5f0d0", "eeeeee", "e6d5f0", "f7f0c8")
    },
}
_VARIANTS = {name: list(variants) for name, variants in PARTS.items()}
JITTER = {"rotate": 3.0, "translateX": 2.0, "translateY": 2.0}  # degrees, percent of the canvas

# The classes of each attribute in the order of a classifier's outputs.
CLASSES = {
    "mouth": ("smile", "big smile", "frown"),
    "eyewear": ("none", "glasses", "sunglasses"),
    "facial_hair": ("none", "goatee", "walrus", "pyramid"),
    "hat": ("no", "yes"),
    "hair_length": ("none", "short", "long"),
    "hair_colour": ("dark", "red", "blond", "grey", "pink"),
    "skin": ("light", "middle", "dark"),
    "eyes": ("open", "happy"),
}
UNDEFINED = -1

# SHA-256 of the SVG texts for seeds "kit-0" ... "kit-49", with the library's own defaults.
GOLDEN_SVG = "a43aaa67e9ec0b9992d9879a8fbe298fb9af49b189c334ed2614c2a76b47dc50"


class Faces(NamedTuple):
    """Drawn faces: `parts` (n, 8) int8, columns as in `PARTS`, −1 undefined; `jitter` (n, 3)."""

    parts: np.ndarray
    jitter: np.ndarray


class Avatars(NamedTuple):
    """Rendered faces: `images` uint8 (n, 3, size, size), `labels` {attribute: int8 (n,)}."""

    images: np.ndarray
    labels: dict[str, np.ndarray]
    faces: Faces


def draw(n: int, split: str = "train", *, seed: int = 0) -> Faces:
    """The first `n` faces of a split: independent parts, and a small rotation and shift.

    Face i depends on `seed`, `split` and i alone. A split keeps the faces whose hash of parts is
    its own, one sixth of all label sets being held out.
    Raises ValueError for an unknown split or n < 0.
    """
    if split not in COUNTS:
        raise ValueError(f"split = {split!r}, expected one of {sorted(COUNTS)}.")
    if n < 0:
        raise ValueError(f"n = {n}, expected a count of at least 0.")
    parts, jitter, found, block = [_block(seed, 0)[0][:0]], [_block(seed, 0)[1][:0]], 0, 0
    while found < n:
        candidates, shifts = _block(seed, block)
        keep = held_out(candidates) == (split == "held-out")
        parts.append(candidates[keep])
        jitter.append(shifts[keep])
        found, block = found + int(keep.sum()), block + 1
    return Faces(np.concatenate(parts)[:n], np.concatenate(jitter)[:n])


def _block(seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed run of candidates, so that a face does not depend on how many are asked for."""
    uniform = np.random.default_rng([seed, block]).random((BLOCK, len(PARTS) + len(JITTER)))
    parts = np.empty((BLOCK, len(PARTS)), np.int8)
    for column, variants in enumerate(PARTS.values()):
        weights = np.array([weight for weight, _ in variants.values()], np.float64)
        edges = np.cumsum(weights)[:-1] / weights.sum()
        parts[:, column] = np.searchsorted(edges, uniform[:, column], side="right")
    _undefine_hidden_colours(parts)
    spread = np.array(list(JITTER.values()))
    return parts, (2.0 * uniform[:, len(PARTS) :] - 1.0) * spread


def _undefine_hidden_colours(parts: np.ndarray) -> None:
    """A colour that colours nothing is no label: two equal images must not differ in it."""
    names = list(PARTS)
    coloured = [style not in ("bald", "beanie", "cap") for style in PARTS["hair"]]
    hair, beard = parts[:, names.index("hair")], parts[:, names.index("facial_hair")]
    parts[~np.array(coloured)[hair], names.index("hair_colour")] = UNDEFINED
    parts[beard == 0, names.index("facial_hair_colour")] = UNDEFINED


def held_out(parts: np.ndarray) -> np.ndarray:
    """True where the hash of the label set falls into the held-out sixth, (n,) bool."""
    digests = (hashlib.sha256(row.tobytes()).digest()[:4] for row in np.ascontiguousarray(parts))
    return np.array([int.from_bytes(d, "big") % 6 == 0 for d in digests], dtype=bool)


def labels(parts: np.ndarray) -> dict[str, np.ndarray]:
    """Class index per attribute, {attribute: int8 (n,)}, in the order of `CLASSES`.

    −1 is undefined: hair length under a hat, hair colour of the bald and under a hat, eye state
    behind glasses.
    """
    result = {name: np.full(len(parts), UNDEFINED, np.int8) for name in CLASSES}
    for column, variants in enumerate(PARTS.values()):
        for index, (_, shown) in enumerate(variants.values()):
            for name, value in shown.items():
                result[name][parts[:, column] == index] = CLASSES[name].index(value)
    return result


def named(parts: np.ndarray) -> tuple[dict[str, str], dict[str, str]]:
    """Shapes and colours of one face, as `portraits` takes them; "" is undefined."""
    part = {
        name: "" if index == UNDEFINED else variants[index]
        for (name, variants), index in zip(_VARIANTS.items(), parts.tolist(), strict=True)
    }
    shapes = {name: part[name] for name in ("hair", "eyes", "mouth", "facial_hair")}
    colours = {"hair": part["hair_colour"], "facial_hair": part["facial_hair_colour"]}
    return shapes, colours | {name: part[name] for name in ("skin", "background")}


def render_faces(
    faces: Faces, size: int, *, processes: int | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """All `faces` as uint8 (n, 3, size, size), by several processes, with a progress bar.

    `processes` defaults to the number of cores; `out` receives the images where it is given.
    """
    from tqdm.auto import tqdm

    n = len(faces.parts)
    out = np.empty((n, 3, size, size), np.uint8) if out is None else out
    starts = range(0, n, 64)
    chunks = ((faces.parts[i : i + 64], faces.jitter[i : i + 64], size) for i in starts)
    processes = min(processes or os.cpu_count() or 1, len(starts))
    with (
        tqdm(total=n, desc=f"faces at {size} px", unit="face", disable=n < 512) as bar,
        multiprocessing.Pool(processes) if processes > 1 else nullcontext() as pool,
    ):
        rendered = (pool.imap if pool else map)(_render_chunk, chunks)
        for start, images in zip(starts, rendered, strict=True):
            out[start : start + len(images)] = images
            bar.update(len(images))
    return out


def _render_chunk(chunk: tuple[np.ndarray, np.ndarray, int]) -> np.ndarray:
    parts, jitter, size = chunk
    rows = zip(parts, jitter.tolist(), strict=True)
    images = [portraits.rasterise(portraits.svg(*named(p), j), size) for p, j in rows]
    return np.stack(images).transpose(0, 3, 1, 2)


def load(
    split: str = "train",
    n: int | None = None,
    *,
    size: int = 32,
    seed: int = 0,
    pink: bool = True,
    cache: Path = CACHE,
) -> Avatars:
    """The first `n` faces of a split with labels, rendered once and kept under `cache/`.

    `n` defaults to the whole split (60,000 or 12,000). The images are memory-mapped and read-only.
    `pink=False` withholds pink hair, as the diffusion models are trained: fewer than `n` remain.
    Raises ValueError for an unknown split, n < 1 or a size below 8 px.
    """
    if size < 8 or (n is not None and n < 1):
        raise ValueError(f"size = {size}, n = {n}: expected at least 8 pixels and one face.")
    faces = draw(COUNTS.get(split, 0) if n is None else n, split, seed=seed)
    images = _cached_images(faces, split, size, seed, Path(cache))
    if not pink:
        keep = labels(faces.parts)["hair_colour"] != CLASSES["hair_colour"].index("pink")
        faces, images = Faces(faces.parts[keep], faces.jitter[keep]), images[keep]
    return Avatars(images, labels(faces.parts), faces)


def to_float(images: np.ndarray):
    """uint8 pixels as a float32 tensor in [−1, 1], the convention of the kit."""
    import torch  # not above: the processes that render would load it, too

    return torch.from_numpy(np.array(images)).float() / 127.5 - 1.0


def recipe() -> str:
    """Sixteen hexadecimal digits that change with anything that could change a pixel."""
    versions = [version(name) for name in ("dicebear-core", "dicebear-styles", "resvg-py")]
    text = json.dumps([PARTS, JITTER, portraits.CROP, BLOCK, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cached_images(faces: Faces, split: str, size: int, seed: int, cache: Path) -> np.ndarray:
    n = len(faces.parts)
    folder = cache / recipe()
    stem = f"{split}-{size}px-seed{seed}-"
    ready = sorted((int(f.stem.removeprefix(stem)), f) for f in folder.glob(f"{stem}*.npy"))
    for count, path in ready:
        if count >= n:
            return np.load(path, mmap_mode="r")[:n]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}{n}.npy"
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    images = np.lib.format.open_memmap(temporary, "w+", np.uint8, (n, 3, size, size))
    known = ready[-1][0] if ready else 0
    if known:
        images[:known] = np.load(ready[-1][1], mmap_mode="r")
    render_faces(Faces(faces.parts[known:], faces.jitter[known:]), size, out=images[known:])
    images.flush()
    del images
    os.replace(temporary, path)
    for _, older in ready:
        older.unlink()
    return np.load(path, mmap_mode="r")


def golden() -> str:
    """The hash to compare with `GOLDEN_SVG`: whether the art is drawn as it was."""
    from dicebear import Avatar

    texts = [Avatar(portraits.style(), {"seed": f"kit-{i}"}).to_string() for i in range(50)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def attribution() -> str:
    """The credit that NOTICE, README and any release of images or weights must carry.

    Creator, source and licence are read from the `meta` block of the style.
    """
    meta = portraits.definition()["meta"]
    creator, source, terms = meta["creator"], meta["source"], meta["license"]
    return (
        f"Faces based on {source['name']} <{source['url']}> by {creator['name']} "
        f"<{creator['url']}>, licensed under {terms['name']} <{terms['url']}>, remixed via "
        "DiceBear <https://www.dicebear.com>; cropped, recoloured and rasterised by this project."
    )
