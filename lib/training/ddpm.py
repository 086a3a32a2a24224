"""The networks that generate faces, one training task each."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.faces import avatars, judge, quality
from lib.training.cards import write_card
from lib.training.task import Task


def ddpm_task() -> Task:
    """Pixel diffusion at 32 px: ε-prediction on linear betas, pink hair withheld."""
    return Task(
        name="avatars-ddpm",
        build=build_ddpm,
        load=lambda folder: loaded("UNet2DModel", folder / "unet"),
        data=faces,
        loss=lambda network, batch, rng: noise_error(network, mirrored(*batch, rng), rng),
        save=_save_ddpm,
        evaluate=measure_ddpm,
        samples=lambda network: sample_ddpm(network, 64),
        save_snapshot=lambda network, folder: pipeline(network).save_pretrained(folder),
        snapshots={"snapshot-1-16": 1 / 16, "snapshot-1-4": 1 / 4},
        steps=16_000,
        batch=32,
        rate=1e-3,
        average=0.999,
        seed=4,
    )


def build_ddpm() -> nn.Module:
    """An untrained U-Net of three levels (24, 48, 96), attention at 8 × 8, h of shape (96, 8, 8).

    Groups of four channels and more keep the channel means apart, which carry the colour.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(24, 48, 96), norm_num_groups=6, attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def loaded(kind: str, folder: Path) -> nn.Module:
    """A network of the named class of diffusers from its folder, float32, to be trained on."""
    import diffusers

    return getattr(diffusers, kind).from_pretrained(folder, torch_dtype=torch.float32).train()


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False,
        set_alpha_to_one=True, timestep_spacing="linspace",
    )  # fmt: skip


def faces(count: int | None = None, size: int = 32) -> tuple[int, Callable]:
    """The training faces without pink hair as `Task.data`: how many, and how to fetch some."""
    images = avatars.load("train", count, size=size, pink=False).images
    return len(images), lambda indices, rng: (avatars.to_float(images[indices.numpy()]),)


def mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the images, at random, with left and right exchanged."""
    flip = torch.rand(len(images), 1, 1, 1, generator=rng).round().to(images.device)
    return torch.lerp(images, images.flip(-1), flip)


def noise_error(network: nn.Module, images: Tensor, rng: torch.Generator) -> Tensor:
    """`weighted_noise_error` of a U-Net of pixels on this schedule."""
    predict = lambda noisy, t: network(noisy, t).sample  # noqa: E731
    return weighted_noise_error(predict, images, _scheduler().alphas_cumprod, rng)


def weighted_noise_error(
    predict: Callable[[Tensor, Tensor], Tensor], clean: Tensor, alphas: Tensor, rng: torch.Generator
) -> Tensor:
    """w(t) |ε − ε_θ|² with w = √((1 − α_t)/α_t), the noise in units of the image.

    On these faces the error of ε that is left falls about like 1/w, so that with w every level of
    noise has equal say: the balance that Karras et al. (2024) learn, here as a fixed law. The plain
    loss all but ignores large t, where the colours are decided.
    `predict(noisy, t)` is the network, `alphas` (T,) the cumulative products.
    """
    n, device = len(clean), clean.device
    t = torch.randint(len(alphas), (n,), generator=rng).to(device)
    noise = torch.randn(clean.shape, generator=rng).to(device)
    alpha = alphas.to(device)[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    error = (predict(noisy, t).float() - noise).square().mean((1, 2, 3))
    return (error * ((1 - alpha) / alpha).sqrt().flatten()).mean()


@torch.no_grad()
def sample_ddpm(
    network: nn.Module, count: int, *, steps: int = 50, seed: int = 0, channels: int = 3
) -> Tensor:
    """Images of the diffusion model by DDIM, (count, channels, 32, 32), clamped to [−1, 1]."""
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, 32, 32, generator=rng)
    for t in scheduler.timesteps:
        noise = torch.cat([network(part, t).sample for part in images.split(64)])
        images = scheduler.step(noise, t, images).prev_sample
    return images.clamp(-1, 1)


@torch.no_grad()
def measure_ddpm(network: nn.Module, *, count: int = 256) -> dict:
    """Fréchet distance to held-out faces against its floor, and the share of images in drift."""
    network.half().float()
    drawn = avatars.to_float(avatars.load("held-out", 2 * count + 100, pink=False).images)
    return beside_faces(sample_ddpm(network, count), drawn)


def beside_faces(samples: Tensor, drawn: Tensor) -> dict:
    """Measures of samples (n, ...) and of as many faces; twice as many faces give the floor."""
    count = len(samples)
    half, other = drawn[:count], drawn[count : 2 * count]
    return {
        "samples": count,
        "frechet": round(judge.frechet(samples, half), 5),
        "frechet_of_faces": round(judge.frechet(other, half), 5),
        "saturated": saturated(samples),
        "saturated_faces": saturated(half),
    }


def saturated(images: Tensor) -> float:
    """Share of images that are all but white or black, see `quality.saturated`."""
    return round(quality.saturated(images).double().mean().item(), 5)


def shipped(network: nn.Module) -> nn.Module:
    """A copy in half precision that does not tell from which folder it was loaded."""
    network = copy.deepcopy(network).half()
    network.register_to_config(_name_or_path="")
    return network


def pipeline(network: nn.Module) -> Any:
    """The pipeline in half precision; the network itself stays as it is."""
    from diffusers import DDIMPipeline

    return DDIMPipeline(shipped(network), _scheduler())


def _save_ddpm(network: nn.Module, folder: Path, metrics: dict) -> None:
    pipeline(network).save_pretrained(folder)
    purpose = "Pixel diffusion model of the kit's faces at 32 px; it has never seen pink hair."
    limits = (
        "it knows drawn, frontal faces on plain backgrounds and nothing else: no textures, "
        "poses or photographs. Fewer of its samples are complete than of the faces (notebook "
        "00). The two snapshots, at 1/16 and 1/4, are of the first run, before any continuation."
    )
    write_card(folder, "avatars-ddpm", purpose, limits, metrics)


TASKS = {"avatars-ddpm": ddpm_task}
