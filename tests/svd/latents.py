"""Latents for the tests of this room."""

import numpy as np
import torch


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def two_latents(*shape, seed=0):
    x = draw(*shape, seed=seed)
    return x, 0.8 * x + 0.6 * draw(*shape, seed=seed + 1)


def orthogonal(n, seed=0):
    return torch.linalg.qr(draw(n, n, seed=seed)).Q
