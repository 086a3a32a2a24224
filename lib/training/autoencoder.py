"""The Diffusion Autoencoder of `hspace/autoencoder.py`: the code, and what takes it in."""

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from lib.diffusion import models, sampling
from lib.faces import avatars
from lib.hspace import autoencoder
from lib.hspace.autoencoder import Autoencoder
from lib.training import ddpm
from lib.training.cards import write_card
from lib.training.task import Task

FACES = 12_000


def autoencoder_task() -> Task:
    """Encoder, decoder and join from nothing; the U-Net of avatars-ddpm is frozen."""
    return Task(
        name=autoencoder.NAME,
        build=_build,
        load=lambda folder: autoencoder.load(base(), folder).requires_grad_(True).train(),
        data=partial(ddpm.faces, FACES),
        loss=_loss,
        save=_save,
        evaluate=measure_autoencoder,
        samples=_samples,
        steps=1_000,
        batch=32,
        rate=2e-3,
        average=0.995,
        seed=6,
    )


@cache
def base() -> models.Generator:
    """The frozen model that takes the code, loaded once."""
    return models.load("avatars-ddpm")


def _build() -> Autoencoder:
    network = Autoencoder(base())
    images = avatars.load("train", FACES, pink=False).images
    network.fit_axes(avatars.to_float(images[:4_000]))
    return network


def _loss(network: Autoencoder, batch: tuple, rng: torch.Generator) -> Tensor:
    (images,) = batch
    images = ddpm.mirrored(images, rng)
    alphas = base().alphas.float()
    return ddpm.weighted_noise_error(lambda x, t: network(x, t, images), images, alphas, rng)


@torch.no_grad()
def measure_autoencoder(network: Autoencoder, *, count: int = 32, steps: int = 20) -> dict:
    """Mean error of the round trip of held-out faces, and of its parts alone."""
    network.half().float()
    faces, run = _held_out(count), {"steps": steps}
    coded = autoencoder.invert_images(network, faces, **run)
    back = autoencoder.decode(network, coded.code, coded.latents, **run)
    drawn = autoencoder.decode(network, coded.code, base().noise(count, 0), **run)
    plain = sampling.invert(base(), faces, refine=2, **run)
    error = lambda x: round((x - faces).abs().mean().item(), 5)  # noqa: E731
    return {
        "held_out_faces": count,
        "round_trip": error(back),
        "round_trip_without_the_code": error(sampling.ddim(base(), plain, **run)),
        "error_with_noise_drawn_anew": error(drawn),
    }


def _held_out(count: int) -> Tensor:
    """Faces without pink hair, which the U-Net has not seen either."""
    return avatars.to_float(avatars.load("held-out", 2 * count, pink=False).images[:count])


def _samples(network: Autoencoder) -> Tensor:
    """Held-out faces, and below each what its code gives with noise drawn anew."""
    faces = _held_out(8)
    code = network.encode(faces)
    return torch.cat([faces, autoencoder.decode(network, code, base().noise(8, 0), steps=20)])


def _save(network: Autoencoder, folder: Path, metrics: dict) -> None:
    autoencoder.save(network, folder)
    purpose = (
        "Diffusion Autoencoder of the kit's faces: a semantic code of 64 numbers for the frozen "
        "U-Net of `avatars-ddpm`. `lib/hspace/autoencoder.py` loads it, inverts with it and edits."
    )
    limits = "it codes drawn, frontal faces of 32 px and nothing else, and no pink hair."
    write_card(folder, autoencoder.NAME, purpose, limits, metrics)


TASKS = {autoencoder.NAME: autoencoder_task}
