"""Figures: one style, column widths, sheets of images, saving with alt text and provenance."""

import base64
import html
import importlib.metadata
import io
import json
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import torch
from cmcrameri import cm
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lib.kit import session

STYLE = Path(__file__).with_name("paper.mplstyle")
WIDTHS = {"column": 3.3, "page": 6.9}  # inches
FILE_DPI = 150
INLINE_DPI = 100
LARGEST_PNG = 150_000  # bytes
HEAVY_PNG = 30_000  # bytes
VERSIONED = ("numpy", "scipy", "torch", "matplotlib")

SLIDER = Template(
    """<figure style="--frame: $start; width: ${width}px; max-width: 100%">
<div style="aspect-ratio: $width / $height; overflow: hidden"><img src="data:image/png;base64,$png"
alt="$alt" style="width: 100%; max-width: none; margin: 0; display: block;
image-rendering: pixelated; transform: translateY(calc(var(--frame) * -100% / $n))"></div>
<label style="display: flex; gap: 1em"><input type="range" style="flex: 1" min="0" max="$last"
value="$start" data-labels="$labels" oninput="
const shown = JSON.parse(this.dataset.labels)[this.value];
this.closest('figure').style.setProperty('--frame', this.value);
this.setAttribute('aria-valuetext', shown); this.nextElementSibling.textContent = shown;"
aria-valuetext="$first"> <output>$first</output></label>
<p><small>$alt</small></p></figure>"""
)


def figure(width: str = "column", height: float | None = None, **subplots_kw) -> tuple:
    """Return (figure, axes) in the kit's style, `width` "column" (3.3 in) or "page" (6.9 in).

    `height` is in inches, by default 3/4 of the column width. Raises ValueError for another width.
    """
    if width not in WIDTHS:
        raise ValueError(f"unknown width {width!r}{session.nearest(width, WIDTHS)}")
    size = (WIDTHS[width], height or 0.75 * WIDTHS["column"])
    with plt.style.context(STYLE):
        return plt.subplots(figsize=size, **subplots_kw)


def heatmap(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    values: np.ndarray,
    *,
    label: str,
    cmap: str | None = None,
    center: float | None = None,
    log: bool = False,
) -> QuadMesh:
    """Draw values[i, j] at x[i], y[j]: first axis to the right, second upwards, and a colour bar.

    `center` gives a signed field the map "vik" around that value; `log` a logarithmic scale. Raises
    ValueError unless values has shape (len(x), len(y)), or for both `center` and `log`.
    """
    values = np.asarray(values)
    if values.shape != (len(x), len(y)):
        raise ValueError(
            f"values has shape {values.shape}, expected {(len(x), len(y))} = (len(x), len(y)): "
            'grids use indexing="ij", the first axis is x'
        )
    if log and center is not None:
        raise ValueError(f"center is {center!r} with log=True: choose one of them")
    norm = LogNorm() if log else Normalize() if center is None else CenteredNorm(center)
    name = cmap or ("batlow" if center is None else "vik")
    colours = getattr(cm, name, None) or plt.get_cmap(name)
    with plt.style.context(STYLE):
        mesh = ax.pcolormesh(x, y, values.T, shading="nearest", cmap=colours, norm=norm)
        mesh.set_rasterized(True)
        ax.figure.colorbar(mesh, ax=ax, label=label)
    ax.grid(False)
    return mesh


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


def save_figure(fig: Figure, name: str, alt: str) -> None:
    """Write NAME.png, its alt text NAME.txt and provenance NAME.json; show it, close it.

    They lie in the folder of the run's figures. Times, host and commit are no part of any of the
    three, so equal figures are equal files. Raises ValueError for an empty alt text or a name that
    is no plain file name.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"figure {name!r} has no alt text: say what is plotted and what it shows")
    if not name.isidentifier():
        raise ValueError(f"figure name is {name!r}: expected letters, digits and underscores")
    alt = " ".join(alt.split())
    folder = session.current().output
    png = _png(fig, alt, FILE_DPI)
    if len(png) > LARGEST_PNG:
        warnings.warn(f"{name}.png has {len(png) // 1000} kB, more than 150 kB", stacklevel=2)
    session.write_atomically(folder / f"{name}.png", png)
    session.write_atomically(folder / f"{name}.txt", alt + "\n")
    session.write_atomically(folder / f"{name}.json", json.dumps(_provenance(), indent=1) + "\n")
    _show(_png(fig, alt, INLINE_DPI), alt)
    plt.close(fig)


def _png(fig: Figure, alt: str, dpi: int) -> bytes:
    """PNG bytes; a heavy one with a palette, a third of the size, unless it shows a field.

    Neighbouring colours of a continuous map would fall together and draw terraces that are not
    in the numbers; faces and lines lose nothing.
    """
    buffer = io.BytesIO()
    metadata = {"Description": alt, "Software": None}  # the version of the software would differ
    with plt.style.context(STYLE):
        fig.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
    field = any(isinstance(item, QuadMesh) for ax in fig.axes for item in ax.collections)
    light = field or buffer.tell() < HEAVY_PNG
    return buffer.getvalue() if light else _with_palette(buffer, alt)


def _with_palette(png: io.BytesIO, alt: str) -> bytes:
    """The same picture in 128 colours, its description kept."""
    text, small = PngInfo(), io.BytesIO()
    text.add_itxt("Description", alt)
    with Image.open(png) as picture:
        coarse = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    coarse.save(small, "png", optimize=True, pnginfo=text)
    return small.getvalue()


def _provenance() -> dict:
    """What the figure was made from."""
    run = session.current()
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in VERSIONED}
    return {
        "notebook": run.notebook,
        "profile": run.profile,
        "seed": run.seed,
        "sizes": run.sizes,
        "inputs": json.loads(os.environ.get("KIT_INPUTS", "{}")),
        "versions": {"python": platform.python_version(), **versions},
    }


def slider(
    frames: np.ndarray, labels: Sequence[str], *, alt: str, start: int = 0, scale: int = 1
) -> None:
    """Show frames (n, h, w, 3) uint8 one at a time, under a slider that needs no kernel.

    The frames are one tall picture behind a window; the slider moves it. `labels` name the frames,
    `start` is the one that is seen before anything moves, `scale` the size of a pixel. Raises
    ValueError for frames of another shape or type, or labels that are not one a frame.
    """
    from IPython.display import HTML, display

    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}: give uint8 (n, h, w, 3), as of plots.sheet"
        )
    if len(labels) != len(frames) or not 0 <= start < len(frames):
        raise ValueError(
            f"{len(labels)} labels and start {start} for {len(frames)} frames: one label a frame"
        )
    _, height, width, _ = frames.shape
    png = io.BytesIO()
    Image.fromarray(frames.reshape(-1, width, 3)).save(png, "png", optimize=True)
    fields = {
        "png": base64.b64encode(png.getvalue()).decode(),
        "alt": html.escape(" ".join(alt.split())),
        "labels": html.escape(json.dumps(list(labels))),
        "first": html.escape(labels[start]),
        "last": len(frames) - 1,
    }
    numbers = {"n": len(frames), "start": start, "width": scale * width}
    numbers["height"] = scale * height
    display(HTML(SLIDER.substitute(fields | numbers)))


def _show(png: bytes, alt: str) -> None:
    """Show the figure, and below it the alt text for all: JupyterLab drops that of the image."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    image = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(image, metadata={"image/png": {"alt": alt}}, raw=True)
    display({"text/html": f"<p><small>{html.escape(alt)}</small></p>"}, raw=True)
