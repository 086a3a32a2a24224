"""The latent text-to-image model of the kit, two training tasks: its autoencoder and its U-Net.

Latents (4, 16, 16) of faces at 64 px; the words are read by the text tower of the kit's CLIP, which
stays frozen, as in Stable Diffusion (Rombach et al. 2022).
"""

import copy
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.diffusion import folders
from lib.faces import avatars, captions, judge
from lib.training.cards import write_card
from lib.training.ddpm import beside_faces, faces, loaded, shipped, weighted_noise_error
from lib.training.scorers import accuracy_of
from lib.training.task import BUILD, Task

SIZE = 64
FACES = 24_000
PARTS = BUILD / "parts"  # the autoencoder waits here until the U-Net is trained
PURPOSE = (
    "Latent diffusion model of the kit's faces at 64 px from captions of its grammar; it has never "
    "seen pink hair."
)
LIMITS = (
    "it knows the words of the kit's captions (`tokenizer/words.json`; others are refused) and "
    "drawn, frontal faces, nothing else. Its Fréchet distance stays above that of rendered faces "
    "(notebook 00)."
)
UNCONDITIONAL = 0.1  # share of captions replaced by "", the prompt that guidance departs from


# --- autoencoder ----------------------------------------------------------------------------------


def autoencoder_task() -> Task:
    """KL autoencoder, factor 4: L1 error of pixels and of their differences, small KL."""
    return Task(
        name="avatars-vae",
        build=build_autoencoder,
        load=lambda folder: loaded("AutoencoderKL", folder.parent / "avatars-sd" / "vae"),
        data=partial(faces, FACES, SIZE),
        loss=_autoencoder_loss,
        save=lambda network, folder, metrics: network.save_pretrained(folder),
        evaluate=measure_autoencoder,
        samples=lambda network: _round_trip(network, _held_out(64)),
        shipped=False,
        steps=2700,
        batch=16,
        rate=2e-3,
        average=0.995,
        seed=5,
    )


def build_autoencoder() -> nn.Module:
    """An untrained AutoencoderKL of three levels (16, 32, 48), latents of 4 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=SIZE, block_out_channels=(16, 32, 48), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    )  # fmt: skip


def _autoencoder_loss(network: nn.Module, batch: tuple, rng: torch.Generator) -> Tensor:
    """|x − x̂| + ½ |∇x − ∇x̂| + 10⁻⁴ KL, each a mean; the posterior is sampled from `rng`."""
    (images,) = batch
    posterior = network.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=rng).to(images.device)
    error = network.decode(posterior.mean + posterior.std * noise).sample - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + 0.5 * edges + 1e-4 * kl


@lru_cache(maxsize=2)
def _held_out(count: int) -> Tensor:
    return avatars.to_float(avatars.load("held-out", count, size=SIZE, pink=False).images)


@torch.no_grad()
def _latents(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network.encode(part).latent_dist.mode() for part in images.split(64)])


@torch.no_grad()
def _images(network: nn.Module, latents: Tensor) -> Tensor:
    return torch.cat([network.decode(part).sample for part in latents.split(64)]).clamp(-1, 1)


def _round_trip(network: nn.Module, images: Tensor) -> Tensor:
    return _images(network, _latents(network, images))


@torch.no_grad()
def measure_autoencoder(network: nn.Module, *, count: int = 1000) -> dict:
    """Error of the round trip and what judge a still reads; centres and scales the latents."""
    drawn = avatars.load("held-out", count, size=SIZE, pink=False)
    images = avatars.to_float(drawn.images)
    centre(network, images)
    network.half().float()
    scale = round(1 / _latents(network, images).std().item(), 5)
    network.register_to_config(scaling_factor=scale)
    again = _round_trip(network, images)
    truth = {name: torch.from_numpy(index) for name, index in drawn.labels.items()}
    read = judge.logits(again)
    kept = {n: round(accuracy_of(z.argmax(1), truth[n]), 4) for n, z in read.items()}
    return {
        "scaling_factor": network.config.scaling_factor,
        "absolute_error": round((again - images).abs().mean().item(), 5),
        "attributes_kept": kept,
    }


@torch.no_grad()
def centre(network: nn.Module, images: Tensor) -> None:
    """Give the latents of `images` mean zero in every channel; the round trip stays as it is.

    z' = z − μ moves into the biases of the two 1 × 1 convolutions beside the latents: b_in − μ, and
    b_out + W_out μ. Sampling starts from noise of mean zero, so a mean would show as a tint.
    """
    mean = _latents(network, images).mean((0, 2, 3))
    inward, outward = network.quant_conv, network.post_quant_conv
    inward.bias[: len(mean)] -= mean
    outward.bias += outward.weight[:, :, 0, 0] @ mean


# --- U-Net ----------------------------------------------------------------------------------------


def text_to_image_task() -> Task:
    """Latent diffusion from captions: ε-prediction, captions dropped now and then."""
    return Task(
        name="avatars-sd",
        build=build_unet,
        load=lambda folder: loaded("UNet2DConditionModel", folder / "unet"),
        data=_latent_data,
        loss=_text_loss,
        save=_save_text_to_image,
        evaluate=measure_text_to_image,
        samples=lambda network: sample(network, ["a face"] * 64),
        steps=8100,
        batch=32,
        rate=1e-3,
        average=0.999,
        seed=6,
    )


def build_unet() -> nn.Module:
    """An untrained UNet2DConditionModel (48, 80, 128): words enter at 8 × 8 and at h, 4 × 4."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(48, 80, 128), norm_num_groups=8, attention_head_dim=4,
        cross_attention_dim=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _scheduler() -> Any:
    """Betas of Stable Diffusion's shape, carried on to 0.02.

    Its own end, 0.012, leaves α_T = 0.005: colours shine through the last noise in training, and
    are missing when sampling starts from noise alone (Lin et al. 2024). Here α_T = 0.0002.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


@lru_cache(maxsize=1)
def autoencoder() -> nn.Module:
    """The trained autoencoder, from the last training or else as shipped; frozen.

    Raises ValueError when neither exists.
    """
    for folder in (PARTS / "avatars-vae", judge.MODELS / "avatars-sd" / "vae"):
        if (folder / "config.json").exists():
            return loaded("AutoencoderKL", folder).eval().requires_grad_(False)
    raise ValueError("no autoencoder yet: train it, python -m lib.training.train avatars-vae.")


@lru_cache(maxsize=1)
def _text_tower() -> tuple[nn.Module, Any]:
    """The text model of the kit's CLIP with its tokenizer, frozen."""
    from transformers import CLIPTextModel

    clip, words = judge.clip()
    tower = CLIPTextModel._from_config(clip.config.text_config, attn_implementation="eager")
    tower.load_state_dict(clip.text_model.state_dict())
    return tower.eval().requires_grad_(False), words


@torch.no_grad()
def embed(texts: list[str]) -> Tensor:
    """Text states (n, 24, 128), padding included, as the pipelines of diffusers compute them."""
    tower, words = _text_tower()
    tokens = words(texts, padding="max_length", max_length=captions.MAX_TOKENS, return_tensors="pt")
    return tower(tokens.input_ids).last_hidden_state


def encode(images: Tensor) -> Tensor:
    """Scaled latents of images, (n, 4, 16, 16)."""
    return _latents(autoencoder(), images) * autoencoder().config.scaling_factor


def decode(latents: Tensor) -> Tensor:
    """Images of scaled latents, clamped to [−1, 1]."""
    return _images(autoencoder(), latents / autoencoder().config.scaling_factor)


def _latent_data() -> tuple[int, Callable]:
    """Latents of the training faces, encoded once, with captions drawn afresh at every step."""
    from tqdm.auto import tqdm

    drawn = avatars.load("train", FACES, size=SIZE, pink=False)
    starts = tqdm(range(0, len(drawn.images), 256), desc="latents")
    latents = torch.cat([encode(avatars.to_float(drawn.images[i : i + 256])) for i in starts])

    def fetch(indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = indices.numpy()
        draw = np.random.default_rng(torch.randint(2**62, (1,), generator=rng).item())
        texts = captions.captions({k: v[rows] for k, v in drawn.labels.items()}, rng=draw)
        empty = draw.random(len(texts)) < UNCONDITIONAL
        said = ["" if drop else text for drop, text in zip(empty, texts, strict=True)]
        return latents[indices], embed(said)

    return len(latents), fetch


def _text_loss(network: nn.Module, batch: tuple, rng: torch.Generator) -> Tensor:
    latents, context = batch
    alphas = _scheduler().alphas_cumprod
    predict = lambda noisy, t: network(noisy, t, encoder_hidden_states=context).sample  # noqa: E731
    return weighted_noise_error(predict, latents, alphas, rng)


@torch.no_grad()
def sample(
    network: nn.Module, prompts: list[str], *, steps: int = 50, guidance: float = 2.0, seed: int = 0
) -> Tensor:
    """Images of the prompts by DDIM with guidance, (n, 3, 64, 64), clamped to [−1, 1]."""
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    n = len(prompts)
    x = torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    context = embed([""] * n + prompts)
    for t in scheduler.timesteps:
        both = network(torch.cat([x, x]), t, encoder_hidden_states=context).sample
        without, given = both.chunk(2)
        x = scheduler.step(without + guidance * (given - without), t, x).prev_sample
    return decode(x)


@torch.no_grad()
def measure_text_to_image(network: nn.Module, *, count: int = 256) -> dict:
    """Fréchet distance against its floor, and how often judge a finds what the prompt asks for."""
    network.half().float()
    free = sample(network, [""] * count, guidance=1.0)
    measured = beside_faces(free, _held_out(2 * count + 100))
    return measured | {"asked_and_found": prompt_following(network, each=16)}


def prompt_following(network: nn.Module, *, each: int, guidance: float = 2.0) -> dict[str, float]:
    """Share of samples of "a face …" in which judge a finds what each phrase asks for."""
    found = {}
    for number, (phrase, (attribute, classes)) in enumerate(captions.MEANINGS.items()):
        if "pink" in phrase:  # withheld from the diffusion models
            continue
        images = sample(network, [f"a face {phrase}"] * each, guidance=guidance, seed=number)
        guess = judge.logits(images)[attribute].argmax(1)
        wanted = torch.tensor([avatars.CLASSES[attribute].index(name) for name in classes])
        found[phrase] = round(torch.isin(guess, wanted).double().mean().item(), 4)
    return found


def pipeline(network: nn.Module) -> Any:
    """The whole model in half precision as a `StableDiffusionPipeline`."""
    from diffusers import StableDiffusionPipeline

    tower, words = _text_tower()
    return StableDiffusionPipeline(
        vae=shipped(autoencoder()), text_encoder=copy.deepcopy(tower).half(), tokenizer=words,
        unet=shipped(network), scheduler=_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _save_text_to_image(network: nn.Module, folder: Path, metrics: dict) -> None:
    pipeline(network).save_pretrained(folder)
    words = json.dumps(sorted(captions.WORDS), indent=1)
    (folder / "tokenizer" / folders.WORDS).write_text(words + "\n", encoding="utf-8")
    write_card(folder, "avatars-sd", PURPOSE, LIMITS, metrics)


TASKS = {"avatars-vae": autoencoder_task, "avatars-sd": text_to_image_task}
