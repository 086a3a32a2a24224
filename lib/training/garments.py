"""The networks of the photographs: a pixel model by the recipe of the faces, and two judges."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.faces import quality
from lib.garments import judge, measures, photographs
from lib.training import cards, ddpm, scorers
from lib.training.task import Task

SOURCE = cards.Source(
    "photographs of Fashion-MNIST",
    "photographs",
    "Photographs: Fashion-MNIST, (c) 2017 Zalando SE, https://tech.zalando.com, MIT licence "
    "(NOTICE).",
)
LIMITS = (
    "it knows single garments on black at 28 px (padded to 32), grey, shoes that point left, and "
    "nothing else."
)


def garments_task() -> Task:
    """Pixel diffusion of the 60,000 training photographs at 32 px, as `ddpm.ddpm_task`."""
    return replace(
        ddpm.ddpm_task(),
        name="garments-ddpm",
        build=build_garments,
        data=_data,
        loss=lambda network, batch, rng: ddpm.noise_error(network, *batch, rng),  # no mirror
        save=_save,
        evaluate=measure_garments,
        samples=lambda network: ddpm.sample_ddpm(network, 64, channels=1),
        snapshots={},
        steps=12_000,
        batch=16,
        rate=1.5e-3,
        seed=5,
    )


def build_garments() -> nn.Module:
    """An untrained U-Net of four levels (16, 32, 64, 96), attention at 4 × 4, h of (96, 4, 4)."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(16, 32, 64, 96), norm_num_groups=4, attention_head_dim=32,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    )  # fmt: skip


def _data() -> tuple[int, Callable]:
    images = photographs.load("train").images
    return len(images), lambda indices, rng: (images[indices],)


@torch.no_grad()
def measure_garments(network: nn.Module, *, count: int = 500) -> dict:
    """Fréchet distances to held-out photographs, and how near samples are to training ones."""
    network.half().float()
    photos, trained_on = photographs.load("held-out").images, photographs.load("train").images
    half, other = photos[:count], photos[count : 2 * count]
    samples = ddpm.sample_ddpm(network, count, channels=1)
    near, usual = (quality.nearest_distance(x, trained_on).median() for x in (samples, other))
    return {
        "samples": count,
        "frechet": round(judge.frechet(samples, half), 5),
        "frechet_of_photographs": round(judge.frechet(other, half), 5),
        "frechet_of_blurred": round(judge.frechet(quality.blurred(other, 0.7), half), 5),
        "nearest_over_held_out": round(float(near / usual), 4),
    }


def _save(network: nn.Module, folder: Path, metrics: dict) -> None:
    ddpm.pipeline(network).save_pretrained(folder)
    purpose = "Pixel diffusion model of photographs of garments, grey, 32 px."
    cards.write_card(folder, "garments-ddpm", purpose, LIMITS, metrics, SOURCE)


# --- the judges -----------------------------------------------------------------------------------


def judge_task(name: str) -> Task:
    """Judge "a" learns from one half of the training photographs, "b" from the other."""
    return Task(
        name=f"garments-judge-{name}",
        build=partial(judge.Judge, name),
        load=lambda folder: judge.load(name, models=folder.parent).requires_grad_(True),
        data=partial(_judge_data, name),
        loss=_judge_loss,
        save=_save_judge,
        evaluate=_measure_judge,
        steps=4_000,
        batch=64,
        rate=3e-3,
        average=0.998,
        seed={"a": 11, "b": 12}[name],
    )


def _judge_data(name: str) -> tuple[int, Callable]:
    half = slice("ab".index(name), None, 2)
    images, labels = (part[half] for part in photographs.load("train"))
    truth = measures.labels(images, labels)
    return len(truth), lambda indices, rng: (images[indices], truth[indices])


def _judge_loss(network: nn.Module, batch: tuple, rng: torch.Generator) -> Tensor:
    """Cross entropy of every head on photographs, shifted, half of them also noisy."""
    images, truth = batch
    shifts = torch.randint(-1, 2, (2,), generator=rng).tolist()
    images = images.roll(shifts, (-2, -1))
    noise = torch.randn(images.shape, generator=rng).to(images) * 0.1
    spoiled = (torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5).to(images)
    found = network((images + noise * spoiled).clamp(-1, 1)).values()
    pairs = zip(found, truth.unbind(1), strict=True)
    return sum(scorers.masked_cross_entropy(z.float(), y) for z, y in pairs)


@torch.no_grad()
def _measure_judge(network: nn.Module) -> dict:
    """Accuracy on all held-out photographs, in the half precision that is shipped."""
    network.half().float()
    scorers.set_reference(network, photographs.load("train").images[:4000].split(250))
    images, labels = photographs.load("held-out")
    parts = [network(part) for part in images.split(500)]
    truth = dict(zip(judge.CLASSES, measures.labels(images, labels).unbind(1), strict=True))
    guess = {head: torch.cat([part[head] for part in parts]).argmax(1) for head in truth}
    accuracy = {head: scorers.accuracy_of(guess[head], truth[head]) for head in truth}
    return {"held_out_photographs": len(labels), "accuracy": accuracy}


def _save_judge(network: nn.Module, folder: Path, metrics: dict) -> None:
    scorers.save_weights(network.state_dict(), folder)
    purpose = f"Judge {network.name}: class and measured attributes of photographs of garments."
    cards.write_card(folder, f"garments-judge-{network.name}", purpose, LIMITS, metrics, SOURCE)


TASKS = {
    "garments-judge-a": partial(judge_task, "a"),
    "garments-judge-b": partial(judge_task, "b"),
    "garments-ddpm": garments_task,
}
