"""The paper's settings on its own data sets, for readers who hold the checkpoints (profile paper).

Prompts, edit times and cosines are those of Asyrp and of its public reproduction. Data sets whose
diffusers weights nobody is known to have published are listed in `WITHOUT_WEIGHTS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lib.diffusion.models import Generator
from lib.faces import pretrained
from lib.hspace import editing, trained
from lib.hspace import fits as training


class Setting(NamedTuple):
    """One attribute: prompts, end of the edit (None: by the rule), text cosine, CLIP weight."""

    name: str
    source: str
    target: str
    t_edit: int | None
    cosine: float = 0.9
    weight: float = 0.8


class DataSet(NamedTuple):
    """A checkpoint, the paper's times on it at cosine 0.9, and its attributes."""

    checkpoint: str
    t_edit: int
    t_boost: int
    settings: tuple[Setting, ...]


DATA_SETS = {
    "celebahq": DataSet(
        "google/ddpm-ema-celebahq-256",
        513,
        167,
        (
            Setting("smiling", "face", "smiling face", 513, 0.90),
            Setting("sad", "face", "sad face", 513, 0.90),
            Setting("angry", "face", "angry face", 512, 0.89),
            Setting("tanned", "face", "tanned face", 512, 0.89),
            Setting("man", "a person", "a man", 513, 0.90),
            Setting("woman", "a person", "a woman", 513, 0.90),
            Setting("young", "person", "young person", 515, 0.91),
            Setting("curly hair", "person", "person with curly hair", 499, 0.84),
            Setting("nicolas", "Person", "Nicolas Cage", 461, 0.71),
            Setting("pixar", "Human", "3D render in the style of Pixar", 446, 0.67),
            Setting("neanderthal", "Human", "Neanderthal", 490, 0.81, 1.2),
            Setting("modigliani", "photo", "Painting in Modigliani style", 403, 0.57),
            Setting("frida", "photo", "self-portrait by Frida Kahlo", 321, 0.44),
        ),
    ),
    "church": DataSet(
        "google/ddpm-ema-church-256",
        367,
        293,
        tuple(
            Setting(name, "church", f"{name} church", None)
            for name in ("gothic", "temple", "factory", "department store", "wooden", "red brick")
        ),
    ),
    "bedroom": DataSet(
        "google/ddpm-ema-bedroom-256",
        367,
        221,
        tuple(Setting(name, "bedroom", f"{name} bedroom", None) for name in ("princess", "hotel")),
    ),
}
WITHOUT_WEIGHTS = {"AFHQ-dog": (439, 167), "METFACES": (313, 180)}  # t_edit, t_boost
TEMPLATES = ("a photo of a {}", "a picture of the {}", "one {}, seen close", "{}, in colour")
TRAINING = {"steps": 40, "batch": 1, "rate": 0.5, "clip_weight": 0.8}


class Row(NamedTuple):
    """One attribute on a checkpoint: cos(ΔI, ΔT) per image, the same with other targets, images."""

    setting: Setting
    cosine: Tensor
    null: Tensor
    plain: Tensor
    edited: Tensor


def data_set(checkpoint: str) -> str:
    """Key of `DATA_SETS` that a hub id or folder belongs to; raises ValueError for another."""
    found = [name for name in DATA_SETS if name in checkpoint.lower()]
    if not found:
        raise ValueError(
            f"checkpoint = {checkpoint!r}: the name must hold one of {', '.join(DATA_SETS)}; no "
            f"weights are known for {', '.join(WITHOUT_WEIGHTS)}"
        )
    return found[0]


def encoder(clip_folder: str) -> Callable[[Tensor], Tensor]:
    """Unit embeddings of images in [−1, 1] by a published CLIP, differentiable; "": the kit's."""
    if not clip_folder:
        return training.encode
    network, _ = pretrained.clip(clip_folder)

    def encode(images: Tensor) -> Tensor:
        own = network.to(images.device)
        pixels = pretrained.clip_pixels(images.clamp(-1, 1), own.config.vision_config.image_size)
        return functional.normalize(own.get_image_features(pixel_values=pixels).pooler_output)

    return encode


def text_direction(setting: Setting, clip_folder: str) -> Tensor:
    """ΔT, the unit mean over `TEMPLATES` of E_T(target) − E_T(source), (d,).

    Without a published CLIP the kit's own serves for "smiling" alone; raises ValueError otherwise.
    """
    if not clip_folder:
        if setting.name != "smiling":
            raise ValueError(
                f"the kit's CLIP does not know {setting.target!r}: set clip_folder to a folder of "
                "clip-vit-base-patch16"
            )
        return training.text_direction("smile")
    network, tokenizer = pretrained.clip(clip_folder)

    def embed(text: str) -> Tensor:
        said = tokenizer([t.format(text) for t in TEMPLATES], padding=True, return_tensors="pt")
        with torch.no_grad():
            found = network.get_text_features(**said.to(network.device)).pooler_output
        return functional.normalize(found)

    return functional.normalize((embed(setting.target) - embed(setting.source)).mean(0), dim=0)


def edit(
    generator: Generator,
    setting: Setting,
    settings: Sequence[Setting],
    *,
    t_edit: int,
    t_boost: int,
    latents: Tensor,
    test: Tensor,
    clip_folder: str = "",
    **options: object,
) -> Row:
    """Train f_t of one setting on latents as the paper does, and edit the test latents with it.

    settings: those whose targets are the null, the shuffled prompts. options: as in
    `trained.train`, where they differ from `TRAINING`.
    """
    encode, direction = encoder(clip_folder), text_direction(setting, clip_folder)
    block = trained.DeltaBlock(generator)
    chosen = {**TRAINING, "clip_weight": setting.weight, "recon_weight": 3 * setting.cosine}
    chosen |= options
    end = setting.t_edit or t_edit
    towards = direction.to(generator.device)
    trained.train(generator, block, latents, encode, towards, t_edit=end, **chosen)
    run = {"steps": chosen["steps"], "t_edit": end, "t_boost": min(t_boost, end)}
    found = editing.asyrp(generator, test, block, **run)
    with torch.no_grad():
        change = encode(found.edited.clamp(-1, 1)) - encode(found.reconstruction.clamp(-1, 1))
    others = [text_direction(s, clip_folder) for s in settings if s.target != setting.target]
    cosine = functional.cosine_similarity(change, towards[None])
    rows = [functional.cosine_similarity(change, o.to(change)[None]) for o in others]
    null = torch.stack(rows).mean(0) if rows else torch.zeros_like(cosine)
    plain, edited = (x.clamp(-1, 1).cpu() for x in (found.reconstruction, found.edited))
    return Row(setting, cosine.cpu(), null.cpu(), plain, edited)
