"""The Diffusion Autoencoder of `hspace/autoencoder.py`: its code and what takes it in."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lib.diffusion import models
from lib.diffusion.models import Generator
from lib.faces import avatars
from lib.hspace.autoencoder import NAME, Autoencoder
from lib.training.cards import write_card
from lib.training.ddpm import weighted_noise_error
from lib.training.task import Task

FACES = 12_000


def autoencoder_task() -> Task:
    """Encoder and join from nothing, the U-Net of avatars-ddpm frozen."""
    return Task(
        name=NAME,
        build=_build,
        load=None,
        data=_data,
        loss=_loss,
        save=None,
        evaluate=None,
        steps=1_200,
        batch=32,
        rate=2e-3,
        average=0.995,
        seed=6,
    )


def _build() -> Autoencoder:
    network = Autoencoder(_base())
    network.fit_axes(_faces(4_000))
    return network


def _faces(count: int) -> Tensor:
    return avatars.to_float(avatars.load("train", FACES, pink=False).images[:count])


def _data() -> tuple[int, Callable]:
    images = avatars.load("train", FACES, pink=False).images
    return len(images), lambda indices, rng: (avatars.to_float(images[indices.numpy()]),)


def _loss(network: Autoencoder, batch: tuple, rng: torch.Generator) -> Tensor:
    (images,) = batch
    flip = torch.rand(len(images), 1, 1, 1, generator=rng).round().to(images.device)
    images = torch.lerp(images, images.flip(-1), flip)
    alphas = _base().alphas.float()
    return weighted_noise_error(lambda x, t: network(x, t, images), images, alphas, rng)


@cache
def _base() -> Generator:
    return models.load("avatars-ddpm")
