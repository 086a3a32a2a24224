"""Rival statistics: the posterior mean, and the leading components of an autoencoder.

A rival turns a sample into d numbers z(x) and calls them sufficient. From there on all are treated
alike: `swaps.fit_swaps` finds the best f = A z and the log Z that goes with it. Both of its steps
are convex, so a poor score belongs to the statistic and not to an optimiser.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lib.geometry.checks import Values, as_tensor, float64, occupied, require_finite, require_whole
from lib.geometry.descent import Descent
from lib.geometry.networks import LocalStatistic, perceptron, seeded, window_counts

LATENT, HIDDEN = 8, 128  # numbers of the autoencoder's code, and of its hidden units


class Statistic(NamedTuple):
    """values: (n, d) float64, one row per sample. parameters: weights of the network behind."""

    values: Tensor
    parameters: int


def posterior_mean(
    samples: Values, theta: Values, *, seed: int = 0, steps: int = 1000
) -> Statistic:
    """Mean-as-Statistic: E[θ|x], as the least-squares regression of θ on the sample.

    The network is that of the direct estimator, window counts and a few collective features: a
    larger one learns the labels of its samples by heart, and its output is no mean.
    samples: (n, L, L) or (n, N), two-valued. theta: (n, d). Source: Lobashev et al. 2025, Table 1.
    """
    require_whole(1, steps=steps)
    require_whole(0, seed=seed)
    samples = as_tensor(samples, "samples")
    theta = float64(theta, "theta").to(samples.device)
    _check_lengths(samples, theta)
    centre, unit = theta.mean(0), theta.std(0)
    counts, target = window_counts(samples), ((theta - centre) / unit).float()
    network = LocalStatistic(samples.ndim - 1, theta.shape[1], collective=True, seed=seed)
    network.to(theta.device)

    def loss(rows: Tensor) -> Tensor:
        return (network(counts[rows]) - target[rows]).square().sum(1).mean()

    _descend(loss, network, len(counts), steps, seed, 2e-2)
    with torch.no_grad():
        return Statistic(network(counts).double() * unit + centre, _size(network))


def vae_components(samples: Values, *, seed: int = 0, steps: int = 1000) -> Statistic:
    """PCA-VAE: two leading principal components of the means of a variational autoencoder.

    Perceptrons both ways, Bernoulli sites, standard normal prior; labels are never seen.
    samples: (n, ...), two-valued.
    Source: Walker, Tam, Jarrell, Sci. Rep. 10, 13047 (2020), as cited by the paper.
    """
    require_whole(1, steps=steps)
    require_whole(0, seed=seed)
    x = occupied(as_tensor(samples, "samples")).flatten(1).float()
    with seeded(seed):
        encoder = perceptron(x.shape[1], HIDDEN, 2 * LATENT)
    with seeded(seed + 1):
        decoder = perceptron(LATENT, HIDDEN, x.shape[1])
    both = nn.ModuleList([encoder, decoder]).to(x.device)
    generator = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        mean, log_variance = encoder(x[rows]).chunk(2, 1)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        logits = decoder(mean + (log_variance / 2).exp() * noise)
        misfit = binary_cross_entropy_with_logits(logits, x[rows], reduction="none").sum(1)
        return (misfit + (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2).mean()

    _descend(loss, both, len(x), steps, seed, 3e-3, batch=256)
    with torch.no_grad():
        mean = encoder(x)[:, :LATENT].double()
    mean = mean - mean.mean(0)
    axes = torch.linalg.svd(mean, full_matrices=False).Vh[:2]
    return Statistic(mean @ axes.T, _size(both))


def _descend(
    loss: Callable[[Tensor], Tensor],
    network: nn.Module,
    n: int,
    steps: int,
    seed: int,
    rate: float,
    batch: int = 512,
) -> None:
    """Descend the loss of random batches of n rows."""
    generator = torch.Generator().manual_seed(seed)
    descent = Descent(network.parameters(), rate, steps, rise=0.3)
    descent.run(lambda step: loss(torch.randint(n, (batch,), generator=generator)))


def _size(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())


def _check_lengths(samples: Tensor, theta: Tensor) -> None:
    """One row of theta per sample, finite, no column constant."""
    if theta.ndim != 2 or len(samples) != len(theta) or len(theta) < 2:
        raise ValueError(
            f"{len(samples)} samples for theta of shape {tuple(theta.shape)}; give (n, d), one row "
            "per sample, n >= 2"
        )
    require_finite("samples", samples)
    require_finite("theta", theta)
    if not (theta.std(0) > 0).all():
        raise ValueError("a column of theta is constant; leave it out, it has nothing to teach")
