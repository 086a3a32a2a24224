"""Settings for all tests."""

import os

import pytest
import torch
from denoisers import Denoiser, Gaussian

from benchmarks import small
from lib.diffusion import models, rehearsal

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_kit_settings():
    """`make test` sets KIT_PROFILE for the notebooks that nbval runs in this same process."""
    names = [name for name in os.environ if name.startswith("KIT_") and name != "KIT_CACHE"]
    settings = {name: os.environ.pop(name) for name in names}
    yield
    os.environ.update(settings)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """One tiny folder of random weights for each published configuration."""
    root = tmp_path_factory.mktemp("tiny")
    return {k: small.write(k, root / k) for k in rehearsal.PUBLISHED}


@pytest.fixture
def gaussian():
    return Gaussian()


@pytest.fixture(scope="session")
def pixel(tiny):
    """A pixel model with real layers whose samples stay bounded."""
    generator = models.load(tiny["celebahq-256"], device="cpu")
    generator.unet = Denoiser(generator.unet, generator.alphas)
    return generator


@pytest.fixture(scope="session")
def latent(tiny):
    """A text model with real layers whose samples stay bounded."""
    generator = models.load(tiny["sd-1.5"], device="cpu")
    generator.unet = Denoiser(generator.unet, generator.alphas)
    return generator
