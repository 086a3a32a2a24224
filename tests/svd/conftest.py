"""A model whose latents are known, for the tests of this room."""

import pytest

from lib import svd
from lib.diffusion import patterns, sampling

SIDE = 32


@pytest.fixture(scope="session")
def mixture():
    return patterns.Patterns(SIDE)


@pytest.fixture(scope="session")
def opposite(mixture):
    """Sources without a prompt and targets that ask for the other sign, at time 400."""
    noise = mixture.noise(64, 0)
    image = sampling.ddim(mixture, noise, steps=50)
    cases = {}
    for pattern, names in ((mixture.coarse, ("left", "right")), (mixture.fine, ("up", "down"))):
        sign = (image * pattern).mean((1, 2, 3)).sign()
        target = [names[int(s > 0)] for s in sign]
        x, z = svd.latent_pair(mixture, noise, None, target, steps=50, stop=400)
        cases[names[0]] = (x, z, target, pattern, sign)
    return cases
