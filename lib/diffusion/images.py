"""Pictures on disk <-> images of a model: any file that Pillow opens, float32 in [-1, 1]."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.diffusion.models import Generator

OVERSHOOT = 10  # how far an edit, which nobody clips, may leave [-1, 1]; 0 ... 255 goes further
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


def read(paths: str | Path | Sequence[str | Path], generator: Generator) -> Tensor:
    """Images (n, c, h, w) as the model takes them, float32 in [-1, 1] on its device.

    Each picture is turned as its EXIF says, laid on white where it is transparent, cropped to the
    largest centred rectangle of the model's shape and resized (bicubic, antialiased); of several
    frames it is the first. Grey pictures serve a model of colours, and the other way round.
    Raises ValueError for no path, and by its name for a file that is missing, empty or damaged, or
    whose numbers have no white (32 bit).
    """
    if not hasattr(generator, "image_shape"):
        raise ValueError(
            f"generator is a {type(generator).__name__}; give read(paths, generator) with what "
            "models.load(name) returned"
        )
    if _no_path(paths):
        raise ValueError(
            f"paths holds a {_no_path(paths)}; give files, read(['face.png'], generator), and save "
            "a picture that is open already, picture.save('face.png')"
        )
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise ValueError("paths is empty; give at least one picture")
    channels, height, width = generator.image_shape
    if channels not in (1, 3):
        raise ValueError(f"{generator.source} has {channels} channels; pictures have 1 or 3")
    rows = [_pixels(Path(path), channels, height, width) for path in paths]
    return torch.from_numpy(np.stack(rows)).to(generator.device)


def _no_path(paths: object) -> str:
    """The type of what is no path among some; an iterator is not asked, it can be read once."""
    if isinstance(paths, str | Path):
        return ""
    rows = paths if isinstance(paths, Iterable) else [paths]
    rows = [] if iter(rows) is rows else rows
    return next((type(p).__name__ for p in rows if not isinstance(p, str | os.PathLike)), "")


def save(images: Tensor, path: str | Path, *, columns: int | None = None) -> list[Path]:
    """Write images (n, c, h, w) in [-1, 1], 8 bit; returns the files, each written in one move.

    A path with a suffix (face.png) is one file, of several images a sheet with `columns` to a row
    (default: about square), the places left over white. A path without is a folder that gets
    000.png, 001.png, ... Overshoots are clamped. Raises ValueError for other shapes and values, for
    a suffix that Pillow does not write, for a folder where the file should be or the other way
    round, and for columns below 1.
    """
    images, path = _checked(images), Path(path)
    if columns is not None and not (isinstance(columns, int) and columns > 0):
        raise ValueError(f"columns is {columns!r}; give a whole number from 1 on")
    if path.is_dir() if path.suffix else path.is_file():
        raise ValueError(f"{path} is there as another kind; face.png is a file, faces a folder")
    if not path.suffix:
        names = [path / f"{i:03d}.png" for i in range(len(images))]
        return [_write(image, name) for image, name in zip(images, names, strict=True)]
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"{path}: {path.suffix} is no format that is written; use .png, or a folder's name"
        )
    return [_write(_sheet(images, columns or math.ceil(len(images) ** 0.5)), path)]


def _pixels(path: Path, channels: int, height: int, width: int) -> np.ndarray:
    """One picture, float32 (channels, height, width)."""
    if not path.is_file() or not path.stat().st_size:
        state = "is empty" if path.is_file() else "is a folder" if path.is_dir() else "is not there"
        raise ValueError(f"{path} {state}; give the file of a picture")
    try:
        with Image.open(path) as opened:
            picture, white = _plain(opened, "RGB" if channels == 3 else "L")
    except Exception as error:  # each decoder has its own
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    pixels = np.asarray(_fitted(picture, height, width), np.float32) / (white / 2) - 1
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.repeat(pixels, channels // len(pixels), 0).clip(-1, 1)


def _plain(opened: Image.Image, mode: str) -> tuple[Image.Image, float]:
    """The upright picture, of mode L, RGB or F (16 bit, grey), and the number that is white."""
    picture = ImageOps.exif_transpose(opened)
    if picture.mode in DEEP or (picture.mode == "I" and opened.format == "PPM"):
        return Image.fromarray(np.asarray(picture).astype(np.float32)), 65535.0
    if picture.mode in ("I", "F"):
        raise ValueError("32-bit numbers without a white; save it with 8 or 16 bit")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB").convert(mode), 255.0


def _fitted(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred rectangle of the shape, resized to it."""
    scale = min(picture.width / width, picture.height / height)
    w, h = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (picture.width - w) // 2, (picture.height - h) // 2
    picture = picture.crop((left, top, left + w, top + h))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _checked(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor | np.ndarray):
        raise ValueError(f"images are a {type(images).__name__}; torch.stack makes one tensor")
    images = torch.as_tensor(images).detach().cpu()
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, 1 or 3, h, w)")
    reach = float(images.float().abs().max())
    if not images.is_floating_point() or not reach <= OVERSHOOT:
        raise ValueError(
            f"images are {images.dtype} and reach {reach:.3g}; expected finite "
            "values in [-1, 1]: map 0..255 by x / 127.5 - 1"
        )
    return images.float().clamp(-1, 1)


def _sheet(images: Tensor, columns: int) -> Tensor:
    """Images (n, c, h, w) side by side, row after row, as one image (c, H, W)."""
    rows = math.ceil(len(images) / columns)
    blank = torch.ones(rows * columns - len(images), *images.shape[1:])
    grid = torch.cat([images, blank]).unflatten(0, (rows, columns))
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _write(image: Tensor, path: Path) -> Path:
    """One image (c, h, w), under a temporary name first."""
    pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(partial, kind)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
