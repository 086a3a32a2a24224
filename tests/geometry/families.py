"""Families with an exact posterior, for the tests of the two steps and of the theorems."""

import torch

from lib.geometry.boxes import cells

F64 = torch.float64
BOX = torch.tensor([[-2.0, -1.0], [2.0, 3.0]], dtype=F64)
SIGMA = torch.tensor([0.5, 0.9], dtype=F64)  # deviation of the exact Gaussian posterior in t


def uniform(n, box=BOX, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return box[0] + (box[1] - box[0]) * torch.rand(n, 2, dtype=F64, generator=generator)


def centres(grid, box=BOX):
    return box[0] + (box[1] - box[0]) * cells(grid)


def gaussian_maps(t, grid, box=BOX, sigma=SIGMA):
    """Exact posterior of a Gaussian with known deviations, over the cells."""
    distance = ((t[:, None] - centres(grid, box)) / sigma).square().sum(2)
    return (-distance / 2).softmax(1).view(-1, grid, grid)


def categorical(t):
    """log Z of three outcomes; natural parameters, not symmetric in the axes."""
    return torch.log(1 + t[:, 0].exp() + 2 * t[:, 1].exp())


def mean_parameter(potential, t):
    return torch.func.grad(lambda s: potential(s).sum())(t)


def hessian(potential, t):
    return torch.func.vmap(torch.func.hessian(lambda s: potential(s[None])[0]))(t).detach()


def exact_maps(potential, t, grid, count, noise=0.0):
    """Posterior maps of `count` samples whose mean statistic is ∇φ(t), or scatters about it."""
    mean = mean_parameter(potential, t)
    if noise:
        root = torch.linalg.cholesky(hessian(potential, t) / count)
        generator = torch.Generator().manual_seed(1)
        mean = (
            mean
            + noise * (root @ torch.randn(len(t), 2, 1, dtype=F64, generator=generator))[:, :, 0]
        )
    log = count * (mean @ centres(grid).T - potential(centres(grid)))
    return log.softmax(1).view(-1, grid, grid)


def rms(x):
    return x.square().mean().sqrt().item()
