"""Fashion-MNIST: 70,000 grey photographs of garments (Xiao, Rasul and Vollgraf 2017, MIT licence).

The four files are read from a folder, from where Debian's package `dataset-fashion-mnist` puts
them, or from a download; each is known by the SHA-256 of what it holds. The kit itself carries the
first 256 held-out photographs, so that lessons and tests need none of the files.
"""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path(__file__).resolve().parents[2] / "cache" / "fashion-mnist"
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CARRIED = Path(__file__).with_name("held_out.npz")
# {split: (file of the images, file of the labels)}; {file: SHA-256 of its content, unpacked}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "held-out": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class Photographs(NamedTuple):
    """images (n, 1, 32, 32) float32 in [−1, 1], −1 the background; labels (n,) into `CLASSES`."""

    images: Tensor
    labels: Tensor


def load(split: str, folder: str | Path | None = None) -> Photographs:
    """All photographs of "train" (60,000) or "held-out" (10,000), padded from 28 to 32 px.

    folder: where the four idx.gz files lie; by default Debian's place, else a download to cache/.
    Raises ValueError for another split, and a file that is missing or holds something else.
    """
    if split not in FILES:
        raise ValueError(f"split = {split!r}, expected one of {sorted(FILES)}")
    images, labels = (_content(name, folder) for name in FILES[split])
    return _photographs(images[16:].reshape(-1, 28, 28), labels[8:])


def held_out() -> Photographs:
    """The first 256 held-out photographs, which the kit carries itself."""
    with np.load(CARRIED, allow_pickle=False) as carried:
        return _photographs(carried["images"], carried["labels"])


def _photographs(images: np.ndarray, labels: np.ndarray) -> Photographs:
    pixels = torch.tensor(images, dtype=torch.float32).unsqueeze(1) / 127.5 - 1
    return Photographs(
        F.pad(pixels, (2, 2, 2, 2), value=-1.0), torch.tensor(labels, dtype=torch.long)
    )


def _content(name: str, folder: str | Path | None) -> np.ndarray:
    """The bytes of one file, head and all, uint8."""
    path = _found(f"{name}.gz", folder)
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or delete it") from error
    if hashlib.sha256(content).hexdigest() != DIGESTS[name]:
        raise ValueError(f"{path} does not hold {name} of Fashion-MNIST; delete it or restore it")
    return np.frombuffer(content, np.uint8)


def _found(name: str, folder: str | Path | None) -> Path:
    places = [DEBIAN, CACHE] if folder is None else [Path(folder)]
    for place in places:
        if (place / name).is_file():
            return place / name
    if folder is not None:
        raise ValueError(f"{folder} holds no {name}; give the folder of the four idx.gz files")
    return _download(name)


def _download(name: str) -> Path:
    """The file from its authors; what it holds is checked as that of any other."""
    try:
        import pooch

        return Path(pooch.retrieve(ADDRESS + name, None, fname=name, path=CACHE))
    except Exception as error:  # no pooch, no network, a full disk: all are mended the same way
        raise ValueError(
            f"{name} is not in {DEBIAN} and cannot be fetched ({error}): install Debian's package "
            "dataset-fashion-mnist or `pip install -e .[garments]`, or give the folder of the files"
        ) from error
