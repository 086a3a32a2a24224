"""The art: the SVG of a face, and its pixels.

The library checks and resolves the options of every avatar anew, which takes as long as drawing it.
`svg` asks it once per combination of shapes and fills in colours and jitter, to the same text.
"""

import importlib.resources
import io
import json
import math
import re
from functools import cache, lru_cache
from typing import Any

import numpy as np

CROP = "9 5 46 46"
CANVAS = 64.0
# Stand-ins within a template: colours that the art does not have, and a jitter of (3, 1, 2).
COLOURS = {"hair": "a1b2c3", "facial_hair": "a1b2c4", "skin": "a1b2c5", "background": "a1b2c6"}
TURN, SHIFT = "rotate(3, 32, 32)", "translate(0.64, 1.28)"


@lru_cache(maxsize=1)
def definition() -> dict:
    """The art of the style with its `meta` block, as shipped in the package `dicebear-styles`."""
    art = importlib.resources.files("dicebear_styles") / "personas.json"
    return json.loads(art.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def style() -> Any:
    """The library's style, checked once."""
    from dicebear import Style

    return Style(definition())


def options(shapes: dict[str, str], colours: dict[str, str], jitter: tuple) -> dict:
    """The DiceBear options that pin every part of one face; "" leaves a part or a colour out.

    shapes: hair, eyes, mouth and facial_hair; colours: the keys of `COLOURS`; jitter: rotation in
    degrees, shift to the right and downwards in percent of the canvas.
    """
    rotate, x, y = jitter
    pinned = {
        "seed": "face",
        "hairVariant": [shapes["hair"]],
        "eyesVariant": [shapes["eyes"]],
        "mouthVariant": [shapes["mouth"]],
        "facialHairProbability": 100 if shapes["facial_hair"] else 0,
        "noseVariant": ["mediumRound"],
        "clothesVariant": ["rounded"],
        "clothingColor": ["456dff"],
        "skinColor": [colours["skin"]],
        "backgroundColor": [colours["background"]],
        "rotate": rotate,
        "translateX": x,
        "translateY": y,
    }
    if shapes["facial_hair"]:
        pinned["facialHairVariant"] = [shapes["facial_hair"]]
        pinned["facialHairColor"] = [colours["facial_hair"]]
    if colours["hair"]:
        pinned["hairColor"] = [colours["hair"]]
    return pinned


def svg(shapes: dict[str, str], colours: dict[str, str], jitter: tuple) -> str:
    """The SVG of one face; arguments as in `options`."""
    text = _template(shapes["hair"], shapes["eyes"], shapes["mouth"], shapes["facial_hair"])
    for part, stand_in in COLOURS.items():
        text = text.replace(f"#{stand_in}", f"#{colours[part]}")
    rotate, x, y = (math.floor(1e4 * value + 0.5) / 1e4 for value in jitter)  # as the library does
    text = text.replace(TURN, f"rotate({_decimal(rotate)}, 32, 32)", 1)
    x, y = (_decimal(value / 100 * CANVAS) for value in (x, y))
    return text.replace(SHIFT, f"translate({x}, {y})", 1)


@cache
def _template(hair: str, eyes: str, mouth: str, facial_hair: str) -> str:
    from dicebear import Avatar

    shapes = {"hair": hair, "eyes": eyes, "mouth": mouth, "facial_hair": facial_hair}
    return Avatar(style(), options(shapes, COLOURS, (3.0, 1.0, 2.0))).to_string()


def _decimal(value: float) -> str:
    """At most five decimals, without trailing zeros."""
    return f"{value:.5f}".rstrip("0").rstrip(".")


def rasterise(svg: str, size: int) -> np.ndarray:
    """RGB pixels of the head in an SVG of the style, uint8 (size, size, 3)."""
    import resvg_py
    from PIL import Image

    cropped = svg.replace('viewBox="0 0 64 64"', f'viewBox="{CROP}"', 1)
    # The canvas reaches beyond the crop: clipping to it shows nowhere, but is a third of the work.
    cropped = re.sub(r'clip-path="url\(#clip-\w+\)"', 'style="isolation:isolate"', cropped, count=1)
    png = resvg_py.svg_to_bytes(
        svg_string=cropped, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
