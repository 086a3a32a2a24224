"""The statistic learned from swaps of labels, log Z by reweighting: two convex steps, no network.

Two samples come with two labels. Of an exponential family, the log-odds that they belong together
as they are, and not the other way round, are

    log p(x_i|θ_i) p(x_j|θ_j) / (p(x_i|θ_j) p(x_j|θ_i)) = ⟨θ_i − θ_j, f(x_i) − f(x_j)⟩,

without log Z, and without the part of p that no parameter touches. With f = A z linear in features
z that are given, learning to tell the two apart is a logistic regression in A, which is convex.
Then `reweighting.reweight` solves for log Z, which is convex too. No prior, no box and no seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.functional import softplus

from lib.geometry.boxes import centres
from lib.geometry.checks import (
    Natural,
    Values,
    as_points,
    as_tensor,
    mapped,
    require_whole,
)
from lib.geometry.potential import FEWEST, Fit, identity
from lib.geometry.reweighting import Reweighted, reweight

RIDGE = 1e-5  # nats in all, for unit A of features that are uncorrelated and of unit variance
STEPS = 50
TOLERANCE = 1e-10  # nats per pair that a step may still promise
BLOCK = 50_000  # pairs at a time


class LinearStatistic(nn.Module):
    """f = A z, features (n, k) to (n, d) float64; matrix: A transposed, (k, d)."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.config = dict(matrix=matrix)
        self.register_buffer("matrix", matrix)

    def forward(self, features: Values) -> Tensor:
        """f of each row of features; ValueError on another number of them than in the fit."""
        z, k = as_points(features, "features").to(self.matrix), len(self.matrix)
        if z.shape[1] != k:
            raise ValueError(f"features have shape {tuple(z.shape)}; the fit read (n, {k})")
        return z @ self.matrix


@dataclass
class SwapFit(Fit):
    """A fit whose network is a `LinearStatistic`, in units of 1/θ, and reads features."""

    def statistic(self, samples: Values) -> Tensor:
        """f = A z of features z (n, k), shape (n, d) float64, up to a constant."""
        return self.network(samples)


def fit_swaps(
    features: Values,
    t: Values,
    *,
    natural: Natural | None = None,
    partners: int = 100,
    cells: int = 400,
) -> SwapFit:
    """Fit log Z of an exponential family whose statistic is linear in the features.

    1. f = A z by telling pairs of samples from the same pairs with their labels swapped;
    2. φ = log Z by `reweighting.reweight` of these statistics, the labels as states.

    features: (n, k), z(x) of each sample, in any units, constant or dependent ones among them.
    t: (n, d), the label of each sample, from any prior. natural: t -> θ, by default the identity.
    partners: of each sample. cells: of the reweighting.
    What the features cannot say of the true statistic is lost, and φ is too flat by as much.
    Returns a `Fit`: its `statistic` reads features, its history holds "step" and "loss", the mean
    of −log P(as they are) over pairs in nats; knowing nothing is log 2. Raises ValueError on values
    not finite, lengths that differ, fewer than 20 samples, and labels or features that do not vary.
    """
    require_whole(1, partners=partners, cells=cells)
    z, t, theta = _checked(features, t, natural or identity)
    a, history = _regression(z, theta, partners)
    potential = reweight(z @ a, t, natural=natural, cells=cells)
    here = as_tensor(features, "features").device
    return SwapFit(potential.to(here), LinearStatistic(a.to(here)), natural or identity, history)


def refined(fit: SwapFit, features: Values, t: Values, *, box: Values, grid: int = 40) -> SwapFit:
    """The same fit with A by the full likelihood of the labels, drawn uniformly from the box.

    Swaps ask about pairs, the posterior p(θ|x) ∝ exp(⟨θ, A z⟩ − φ_A(θ)) about all labels at once.
    To first order φ follows A as ⟨θ, dA ζ(θ)⟩, ζ(θ) = E[z|θ] by reweighting, so that

        log p(θ|x) = ⟨θ, A z⟩ − φ_A(θ) + ⟨θ, dA (z − ζ(θ))⟩ − log of its integral over the box

    is a logistic regression in dA. At its solution φ is reweighted anew.

    features, t, errors: as of `fit_swaps`. box: (2, d). grid: points per axis of the integral.
    """
    z, t, theta = (x.to(fit.network.matrix) for x in _checked(features, t, fit.natural))
    nodes = mapped(fit.natural, centres(box, grid).to(z))
    basis, f, history = _whitening(z), fit.statistic(z), []
    white, phi = (z - z.mean(0)) @ basis, fit.potential
    seen, own = (_response(f, white, phi, q) for q in (nodes, theta))
    start = phi(theta).sum() - (theta * f).sum()
    score = torch.einsum("na,nb->ba", theta, white - own).flatten()
    about = dict(f=f, z=white, nodes=nodes, seen=seen, phi=phi(nodes))
    loss = partial(_posterior_loss, start=start.item(), score=score, **about)
    step = _newton(torch.zeros_like(score), loss, history).view(white.shape[1], -1)
    statistic = LinearStatistic(fit.network.matrix + basis @ step)
    history = {"step": np.arange(len(history)), "loss": np.array(history)}
    potential = reweight(statistic(z), t, natural=fit.natural)
    return SwapFit(potential, statistic, fit.natural, history)


def _response(f: Tensor, z: Tensor, potential: Reweighted, theta: Tensor) -> Tensor:
    """E[z|θ] at θ (n, d) by the weights of a potential made of the statistics f, (n, k)."""
    distinct, row = torch.unique(f, dim=0, return_inverse=True)
    mean = z.new_zeros(len(distinct), z.shape[1]).index_add_(0, row, z)
    mean = mean / row.bincount()[:, None]
    logs = (block @ distinct.T + potential.log_weights for block in theta.split(256))
    return torch.cat([log.softmax(1) @ mean for log in logs])


def _posterior_loss(
    a: Tensor,
    start: float,
    score: Tensor,
    f: Tensor,
    z: Tensor,
    nodes: Tensor,
    seen: Tensor,
    phi: Tensor,
) -> tuple[float, Tensor, Tensor]:
    """Mean of −log p(θ|x) against the uniform density, gradient and Hessian in dA, flat."""
    step, size = a.view(z.shape[1], -1), len(a)
    tilt = (seen[:, :, None] * nodes[:, None]).flatten(1)
    level = phi + tilt @ a
    square = (nodes[:, :, None] * nodes[:, None]).flatten(1)
    cross = (nodes[:, :, None] * tilt[:, None]).flatten(1)
    loss, gradient, hessian = start - (score @ a).item(), -score, RIDGE * torch.eye(size).to(a)
    for rows in torch.arange(len(z)).split(2_000):
        x = z[rows]
        log = (f[rows] + x @ step) @ nodes.T - level
        total = log.logsumexp(1)
        p = (log - total[:, None]).exp()
        mean = (x[:, :, None] * (p @ nodes)[:, None]).flatten(1) - p @ tilt
        own = torch.einsum("nb,nc,nad->bacd", x, x, (p @ square).unflatten(1, step.shape[1:] * 2))
        mixed = torch.einsum("nb,nam->bam", x, (p @ cross).unflatten(1, (-1, size)))
        own, mixed = own.reshape(size, size), mixed.reshape(size, size)
        loss += (total - math.log(len(nodes))).sum().item()
        gradient = gradient + mean.sum(0)
        hessian += own - mixed - mixed.T + (tilt.T * p.sum(0)) @ tilt - mean.T @ mean
    return loss / len(z), gradient / len(z), hessian / len(z)


def pairs(theta: Tensor, partners: int) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) of pairs at distances that are log-uniform from n^{-1/2} to one.

    Distances are those of the ranks of the labels, in shares of all, so that no unit matters. Near
    pairs teach where the samples are sharp, far pairs where they are dull. A partner is the label
    nearest to a random place; the places are the same in every call.
    """
    n, d = theta.shape
    generator = torch.Generator().manual_seed(0)
    rank = theta.argsort(0).argsort(0).double() / (n - 1)
    direction = torch.randn(n * partners, d, dtype=rank.dtype, generator=generator)
    direction = direction / direction.norm(dim=1, keepdim=True)
    decades = torch.rand(n * partners, 1, dtype=rank.dtype, generator=generator) / 2
    i = torch.arange(n).repeat(partners)
    target = rank[i] + n**-decades * direction
    inside = ((target >= 0) & (target <= 1)).all(1)
    i = i[inside]
    j = torch.from_numpy(cKDTree(rank.numpy()).query(target[inside].numpy())[1])
    return i[i != j], j[i != j]


def _regression(z: Tensor, theta: Tensor, partners: int) -> tuple[Tensor, dict]:
    """A as (k, d), and the losses on the way: a tenth of the pairs first, then all of them."""
    basis, unit = _whitening(z), theta.std(0)
    white, s = (z - z.mean(0)) @ basis, theta / unit
    i, j = pairs(theta, partners)
    a, history = white.new_zeros(white.shape[1] * s.shape[1]), []
    for share in (10, 1):
        a = _newton(a, partial(_loss, z=white, s=s, i=i[::share], j=j[::share]), history)
    history = {"step": np.arange(len(history)), "loss": np.array(history)}
    return basis @ a.view(-1, s.shape[1]) / unit, history


def _newton(a: Tensor, loss: Callable, history: list) -> Tensor:
    """Newton's method with step halving on a convex loss(a) -> value, gradient, Hessian."""
    value, gradient, hessian = loss(a)
    for _ in range(STEPS):
        history.append(value)
        move = -torch.linalg.solve(hessian, gradient)
        if -(gradient @ move) < TOLERANCE:
            break
        length, trial = 1.0, loss(a + move)
        while trial[0] > value and length > 1e-4:
            length /= 2
            trial = loss(a + length * move)
        a, (value, gradient, hessian) = a + length * move, trial
    return a


def _loss(a: Tensor, z: Tensor, s: Tensor, i: Tensor, j: Tensor) -> tuple[float, Tensor, Tensor]:
    """Mean of log(1 + exp(−log-odds)) over the pairs, its gradient and Hessian in A, flat."""
    loss, gradient = RIDGE * (a @ a).item() / 2, RIDGE * a
    hessian = RIDGE * torch.eye(len(a), dtype=a.dtype)
    for block in torch.arange(len(i)).split(BLOCK):
        first, second = i[block], j[block]
        x = (z[first] - z[second])[:, :, None] * (s[first] - s[second])[:, None]
        x = x.flatten(1)
        odds = x @ a
        wrong = torch.sigmoid(-odds)
        loss += softplus(-odds).sum().item()
        gradient = gradient - x.T @ wrong
        hessian += (x.T * (wrong * (1 - wrong))) @ x
    return loss / len(i), gradient / len(i), hessian / len(i)


def _whitening(z: Tensor) -> Tensor:
    """(k, r) that makes the features uncorrelated and of unit variance, r <= k independent ones."""
    spread = z.std(0)
    unit = torch.where(spread > 1e-12 * z.abs().amax(0), 1 / spread, torch.zeros_like(spread))
    if not unit.any():
        raise ValueError("the features are constant; give some that vary from sample to sample")
    value, vector = torch.linalg.eigh(torch.cov((z * unit).T).view(len(unit), len(unit)))
    keep = value > 1e-9 * value.amax()
    return unit[:, None] * vector[:, keep] / value[keep].sqrt()


def _checked(features: Values, t: Values, natural: Natural) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, k), labels and natural labels (n, d), float64, or a ValueError."""
    z, t = as_points(features, "features").double().cpu(), as_points(t).double().cpu()
    if len(z) != len(t) or len(t) < FEWEST:
        raise ValueError(
            f"{len(z)} rows of features and {len(t)} labels; give one row per label, {FEWEST} or "
            "more"
        )
    theta = mapped(natural, t)
    still = (theta.amax(0) <= theta.amin(0)).nonzero().flatten().tolist()
    if still:
        raise ValueError(
            f"natural(t) is the same for all labels in its coordinates {still}; leave out what "
            "does not vary, it teaches nothing"
        )
    return z, t, theta
