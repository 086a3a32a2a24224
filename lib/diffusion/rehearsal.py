"""Folders of random weights at the published sizes, to rehearse the paper profile offline.

`python -m lib.diffusion.rehearsal [KIND ...]` writes them below cache/rehearsal/, loads each,
samples and inverts two images in two steps.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import nn

from lib.diffusion import folders, models, sampling

FOLDER = folders.ROOT / "cache" / "rehearsal"
MEMORY = 16  # GiB, for the largest of them in float32 beside a notebook
LETTER_PAIRS = [
    (a, b + end) for end in ("</w>", "") for a in ascii_lowercase for b in ascii_lowercase
]
Changes = Mapping[str, Mapping[str, Any]]
NONE: Changes = {}
PLAIN_DOWN, PLAIN_UP = ("DownBlock2D",), ("UpBlock2D",)
SHRINK, GROW = ("ResnetDownsampleBlock2D",), ("ResnetUpsampleBlock2D",)
SIX_LEVELS = {"sample_size": 256, "block_out_channels": (128, 128, 256, 256, 512, 512)}
GUIDED = SIX_LEVELS | {
    "out_channels": 6,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
}
# Published configurations: what differs from the defaults of diffusers 0.42.
PUBLISHED: dict[str, dict[str, Any]] = {
    "celebahq-256": SIX_LEVELS
    | {
        "down_block_types": (*PLAIN_DOWN * 4, "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *PLAIN_UP * 4),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    },
    "learned-sigma-256": GUIDED
    | {
        "layers_per_block": 1,
        "down_block_types": (*SHRINK * 4, "AttnDownBlock2D", *SHRINK),
        "up_block_types": (*GROW, "AttnUpBlock2D", *GROW * 4),
    },
    "adm-lsun-256": GUIDED
    | {
        "layers_per_block": 2,
        "block_out_channels": (256, 256, 512, 512, 1024, 1024),
        "down_block_types": (*SHRINK * 3, *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, *GROW * 3),
    },
    "sd-1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "sd-2.1-base": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT: dict[str, dict[str, Any]] = {
    "sd-1.5": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "sd-2.1-base": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}


def write_random(
    kind: str, folder: str | Path, *, half: bool = False, seed: int = 0, changes: Changes = NONE
) -> Path:
    """Write a diffusers folder of random weights with the configuration of a published model.

    kind: a key of `PUBLISHED`; half: float16 weights, half the disk; changes: {part: entries of its
    configuration} in place of the published ones. The tokenizer of a text model knows pairs of
    letters instead of the published merges. Raises ValueError for an unknown kind and a folder that
    exists.
    """
    folder = Path(folder)
    if kind not in PUBLISHED:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    random_state = torch.get_rng_state()
    try:
        with folders.new_folder(folder) as partial, folders.without_bars():
            torch.manual_seed(seed)
            for part, make in networks(kind, changes).items():
                network = make()
                (network.half() if half else network).save_pretrained(partial / part)
                del network  # one network in memory at a time
            _write_index(kind, partial)
    finally:
        torch.set_rng_state(random_state)
    return folder


def networks(kind: str, changes: Changes = NONE) -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the networks of one kind, by folder name; changes as in `write_random`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    own = {"unet": PUBLISHED[kind], "vae": AUTOENCODER, "text_encoder": TEXT.get(kind, {})}
    unet, encoder, text = (own[part] | changes.get(part, {}) for part in own)
    if kind not in TEXT:
        return {"unet": lambda: UNet2DModel(**unet)}
    ends = {"bos_token_id": len(_vocabulary()) - 2, "eos_token_id": len(_vocabulary()) - 1}
    return {
        "unet": lambda: UNet2DConditionModel(**unet),
        "vae": lambda: AutoencoderKL(**encoder),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**text, **ends)),
    }


def _write_index(kind: str, folder: Path) -> None:
    """model_index.json, scheduler and tokenizer, so that the library's pipelines load it too."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    text = kind in TEXT
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    # the stock defaults clip and shift the schedule; ours does neither
    safe = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    DDIMScheduler(**safe, **(betas if text else {})).save_pretrained(folder / "scheduler")
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    if text:
        vocabulary = {token: i for i, token in enumerate(_vocabulary())}
        tokenizer = CLIPTokenizer(vocabulary, LETTER_PAIRS, model_max_length=77)
        tokenizer.save_pretrained(folder / "tokenizer")
        parts |= {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
        }
    name = "StableDiffusionPipeline" if text else "DDPMPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, **parts}, indent=1))


def _vocabulary() -> list[str]:
    """All bytes, all pairs of letters, each also at the end of a word, and the two end marks."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pairs = ["".join(pair) for pair in LETTER_PAIRS]
    ends = [f"{letter}</w>" for letter in letters]
    return [*letters, *ends, *pairs, "<|startoftext|>", "<|endoftext|>"]


def obstacle() -> str:
    """Why this machine cannot hold the published sizes, "" when it can."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if torch.cuda.is_available() or memory >= MEMORY:
        return ""
    return f"no GPU and {memory:.0f} GiB of memory, {MEMORY} are needed"


def rehearse(kind: str, folder: Path, changes: Changes = NONE) -> str:
    """Write `folder`/`kind` unless it is there, load it, sample and invert; say what came out."""
    if not (folder / kind).exists():
        write_random(kind, folder / kind, half=True, changes=changes)
    begin = time.perf_counter()
    generator = models.load(folder / kind)
    text = {} if generator.text_encoder is None else {"prompt": "a face", "guidance": 2.0}
    images = sampling.ddim(generator, generator.noise(2, 0), steps=2, **text).clamp(-1, 1)
    latents = sampling.invert(generator, images, steps=2, **text)
    if not bool(latents.isfinite().all()):
        raise ValueError(f"{kind}: sampling or inversion gave values that are not finite")
    seconds = time.perf_counter() - begin
    shapes = f"images {tuple(images.shape)}, latents {tuple(latents.shape)}"
    return f"{kind}: {shapes}, {seconds:.0f} s on {generator.device.type}"


def main(kinds: list[str]) -> None:
    """Rehearse the named kinds, or all of them."""
    for kind in kinds or PUBLISHED:
        reason = obstacle()
        print(f"{kind}: skipped ({reason})" if reason else rehearse(kind, FOLDER), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
