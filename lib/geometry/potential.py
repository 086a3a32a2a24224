"""Learn log Z from samples and their parameters: a convex potential, its Hessian the metric.

For an exponential family p(x|θ) = exp(⟨θ, f(x)⟩ − φ(θ)), φ = log Z, and parameters drawn uniformly
in a box, the posterior of the parameter is

    log p(t|x) = ⟨θ(t), f(x)⟩ − φ(θ(t)) − log ∫_box exp(⟨θ(t'), f(x)⟩ − φ(θ(t'))) dt'.

`fit_direct` maximises it in f and φ together: no binned posterior, no bump, no second fit. It is
for samples of which nobody can name the features: f is a network that reads them raw. Where
features are at hand, `swaps.fit_swaps` is more accurate and faster, and needs no box.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lib.geometry.boxes import in_box, mesh, warn_uneven
from lib.geometry.checks import (
    Natural,
    Potential,
    Values,
    as_tensor,
    float64,
    mapped,
    require_finite,
    require_whole,
    trainable,
)
from lib.geometry.descent import Best, Descent, progress, small_matrices
from lib.geometry.networks import (
    ConvexPotential,
    LocalStatistic,
    PotentialNetwork,
    check_windows,
    seeded,
    window_counts,
)

FEWEST = 20  # samples: a tenth is held out
ROUGHNESS = 1e-3  # price of `ConvexPotential.roughness`, without which the Hessian ripples
MOST_NODES = 40_000  # of the integral before a warning


def identity(t: Tensor) -> Tensor:
    """Coordinates that are natural already."""
    return t


@dataclass
class Fit:
    """A fitted exponential family.

    potential: a convex network, or `reweighting.Reweighted`; θ (n, d) -> log Z (n,), float64, up to
    an affine function of θ. network: samples (or their window counts) -> f/sites in the rescaled
    coordinates. natural: t -> θ. history: "step" and "held_out", the held-out negative
    log-likelihood in nats against the uniform density on the box; step 0 is the warm start.
    """

    potential: nn.Module
    network: nn.Module
    natural: Natural
    history: dict

    def statistic(self, samples: Values) -> Tensor:
        """f(x), shape (n, d) float64, up to a constant; samples shaped like those of the fit."""
        with torch.no_grad():
            f = self.network(_inputs(as_tensor(samples, "samples"), self.network))
        return f.double() * self.potential.config["scale"] / self.potential.radius


def fit_direct(
    samples: Values,
    t: Values,
    *,
    box: Values,
    natural: Natural | None = None,
    network: nn.Module | None = None,
    collective: bool = False,
    seed: int = 0,
    steps: int = 1000,
    grid: int = 48,
    width: int = 48,
    batch: int = 256,
) -> Fit:
    """Fit log Z by maximum likelihood of the parameter, from samples drawn uniformly in the box.

    Three stages, each consistent for an exponential family, each the start of the next:

    1. f by swapping: exchanging x_i, x_j between θ_i, θ_j has log-odds −⟨θ_i − θ_j, f_i − f_j⟩,
       a logistic loss that needs neither φ nor a normaliser;
    2. φ by matching its gradient, ∇φ(θ) = E[f|θ];
    3. both by the likelihood of the module, the integral on a grid shifted at random in each step,
       keeping the weights with the best held-out likelihood.

    samples: (n, L, L) or (n, N) with two states, or anything that `network` maps to (n, d).
    t: (n, d) in the caller's units. box: (2, d), lower and upper corner. natural: t -> θ.
    network: samples -> f/sites; the default reads local windows, and `collective` makes it
    nonlinear in their frequencies. grid: points per axis of the integral. steps: >= 20, of stages 1
    and 3, stage 2 takes twice as many. Trains in float32, returns float64.
    Raises ValueError on samples outside the box or not finite, lengths that differ, a `natural`
    that is not finite on the box, and a grid too coarse for the data.
    """
    require_whole(20, steps=steps)
    require_whole(2, grid=grid)
    require_whole(1, width=width, batch=batch)
    require_whole(0, seed=seed)
    samples, t, box = labelled(samples, t, box)
    warn_uneven(t, box)
    _check_nodes(grid, t.shape[1])
    natural = natural or identity
    if network is None:
        check_windows(samples)
        network = LocalStatistic(samples.ndim - 1, t.shape[1], collective, seed)
    x = _inputs(samples, network)
    network = trainable(network, x[:4], t.shape[1:])
    phi = ConvexPotential(*region(natural, box), samples[0].numel(), width, seed).to(t.device)
    fit = Fit(phi, network, natural, {})
    run = Likelihood(fit, x, phi.rescale(mapped(natural, t)), box, grid, batch, seed)
    with progress("fit_direct", 4 * steps) as bar, small_matrices(), seeded(seed):
        network.train()
        Descent(network.parameters(), 3e-2, steps).run(run.swap_loss, bar=bar)
        network.eval()
        run.start_from_mean_slope()
        Descent(phi.parameters(), 3e-2, 2 * steps).run(run.matching_loss, bar=bar)
        run.refuse_coarse_grid()
        run.watch(0)
        both = [*phi.parameters(), *network.parameters()]
        Descent(both, 2e-3, steps).run(run.likelihood_loss, run.watch, bar=bar)
    fit.history = run.best.restore()
    phi.double()
    return fit


@dataclass
class Likelihood:
    """The losses of one fit: inputs x and rescaled parameters s, a tenth of them held out.

    Each step draws its batch anew.
    """

    fit: Fit
    x: Tensor
    s: Tensor
    box: Tensor
    grid: int
    size: int
    seed: int
    best: Best = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.best = Best(self.fit.potential, self.fit.network)
        self.generator = torch.Generator().manual_seed(self.seed)
        shuffle = torch.randperm(len(self.s), generator=self.generator)
        self.x, self.s = self.x[shuffle], self.s[shuffle]
        self.training = len(self.s) - max(1, len(self.s) // 10)

    @property
    def phi(self) -> PotentialNetwork:
        """The potential that is fitted."""
        return self.fit.potential

    def f(self, rows: Tensor | slice) -> Tensor:
        """The statistic in rescaled coordinates, (n, d)."""
        return self.phi.config["scale"] * self.fit.network(self.x[rows])

    def batch(self, size: int) -> Tensor:
        """Row numbers of a random training batch."""
        return torch.randint(self.training, (size,), generator=self.generator)

    def swap_loss(self, step: int) -> Tensor:
        """log(1 + e^{−⟨s_i − s_j, f_i − f_j⟩}) summed over pairs, per sample.

        Any f tells distant pairs apart, so the mean over all pairs would fade as they grow sharp.
        """
        rows = self.batch(2 * self.size)
        overlap = self.s[rows] @ self.f(rows).T
        own = overlap.diagonal()
        log_odds = own[:, None] + own[None] - overlap - overlap.T
        return softplus(-log_odds).sum() / len(rows)

    @torch.no_grad()
    def start_from_mean_slope(self) -> None:
        """The constant in f is free and often large; φ takes it as its slope at once."""
        self.phi.slope.copy_(self.fit.network(self.x[: self.training]).mean(0))

    def matching_loss(self, step: int) -> Tensor:
        """Mean squared distance of ∇φ and f, both per site, and the price of roughness."""
        rows = self.batch(2 * self.size)
        with torch.no_grad():
            target = self.fit.network(self.x[rows])
        s = self.s[rows].requires_grad_()
        (gradient,) = torch.autograd.grad(self.phi.per_site(s).sum(), s, create_graph=True)
        distance = (gradient - target).square().sum(1).mean()
        return distance + ROUGHNESS * self.phi.roughness()

    def likelihood_loss(self, step: int) -> Tensor:
        """Mean of −log p(t|x) over a batch, the grid shifted at random, and the same price."""
        shift = torch.rand(self.box.shape[1], generator=self.generator)
        loss = -self.log_posterior(self.batch(self.size), shift).mean()
        return loss + ROUGHNESS * self.phi.roughness()

    def nodes(self, shift: Tensor) -> Tensor:
        """Points t of the integral: the grid, shifted by a share of a cell, (g^d, d)."""
        return mesh(self.box, (torch.arange(self.grid) + shift[:, None]) / self.grid)

    def energies(self, f: Tensor, shift: Tensor) -> Tensor:
        """⟨θ', f⟩ − φ(θ') at the nodes, (n, nodes)."""
        s = self.phi.rescale(self.fit.natural(self.nodes(shift)))
        return f @ s.T - self.phi.config["scale"] * self.phi.per_site(s)

    def log_posterior(self, rows: Tensor | slice, shift: Tensor) -> Tensor:
        """log p(t|x) in nats against the uniform density on the box, (n,)."""
        f, s = self.f(rows), self.s[rows]
        energies = self.energies(f, shift)
        own = (f * s).sum(1) - self.phi.config["scale"] * self.phi.per_site(s)
        return own - torch.logsumexp(energies, 1) + math.log(energies.shape[1])

    @torch.no_grad()
    def watch(self, step: int) -> None:
        """Record the held-out loss and keep the best weights."""
        self.fit.network.eval()
        rows = slice(self.training, self.training + 1024)
        loss = -self.log_posterior(rows, torch.full((self.box.shape[1],), 0.5)).mean().item()
        self.best.watch(step, loss)
        self.fit.network.train()

    @torch.no_grad()
    def refuse_coarse_grid(self) -> None:
        """A posterior narrower than a cell makes the integral, and so the loss, meaningless."""
        f = self.f(slice(self.training, self.training + 256))
        weights = self.energies(f, torch.full((self.box.shape[1],), 0.5)).softmax(1)
        lone = (weights.amax(1) > 0.9).double().mean().item()
        if lone > 0.5:
            raise ValueError(
                f"grid={self.grid} is too coarse for the data: the posterior of {lone:.0%} of the "
                "samples lies in one cell; use a finer grid, a smaller box or smaller systems"
            )


def bregman(potential: Potential, t: Values, t0: Values) -> Tensor:
    """Bregman divergence D(t, t₀) = φ(t) − φ(t₀) − ⟨∇φ(t₀), t − t₀⟩, row by row, (n,) float64.

    For φ = log Z of an exponential family it is KL(p(·|t₀) ‖ p(·|t)), in nats. Adding an affine
    function to φ changes nothing. t: (n, d). t0: (n, d), or (1, d) for all; else ValueError.
    Source: Lobashev et al. 2025, Eq. 11-12.
    """
    t = float64(t, "t")
    t0 = float64(t0, "t0").to(t.device)
    if t.ndim != 2 or t0.ndim != 2 or len(t0) not in (1, len(t)) or t.shape[1] != t0.shape[1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, t0 {tuple(t0.shape)}; give (n, d) and (n, d) or (1, d)"
        )
    slope = torch.func.grad(lambda s: potential(s).sum())(t0)
    return potential(t) - potential(t0) - (slope * (t - t0)).sum(1)


@dataclass
class Alignment:
    """reference ≈ scale · estimate + ⟨slope, t⟩ + offset; one alignment for all derivatives."""

    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __call__(self, values: Values, t: Values) -> Tensor:
        """Aligned values (n,) at t (n, d)."""
        return self.scale * float64(values) + float64(t) @ self.slope + self.offset

    def gradient(self, gradient: Values) -> Tensor:
        """Aligned gradients (n, d)."""
        return self.scale * float64(gradient) + self.slope

    def hessian(self, hessian: Values) -> Tensor:
        """Aligned Hessians (n, d, d): an affine function has none."""
        return self.scale * float64(hessian)


def align_affine(
    estimate: Values, reference: Values, t: Values, *, scale: bool = False
) -> Alignment:
    """Least squares of the reference on the estimate plus an affine function of t.

    log Z is known from samples only up to an affine function of θ (Theorem 3.2), so every score of
    its values or slopes needs this first; `scale=True` also frees the unit of the estimate.
    estimate, reference: (n,). t: (n, d), the coordinates in which the freedom is affine. Raises
    ValueError on lengths that differ or values that are not finite.
    """
    estimate, reference, t = float64(estimate), float64(reference), float64(t)
    shapes = tuple(estimate.shape), tuple(reference.shape), tuple(t.shape)
    if t.ndim != 2 or not shapes[0] == shapes[1] == shapes[2][:1]:
        raise ValueError(
            f"estimate, reference, t have shapes {shapes}; expected (n,), (n,) and (n, d)"
        )
    for name, values in (("estimate", estimate), ("reference", reference), ("t", t)):
        require_finite(name, values)
    columns = torch.cat([t, torch.ones_like(t[:, :1])], 1)
    target = reference
    if scale:
        columns = torch.cat([columns, estimate[:, None]], 1)
    else:
        target = reference - estimate
    # On the CPU, where least squares copes with a constant estimate.
    solution = torch.linalg.lstsq(columns.cpu(), target[:, None].cpu(), driver="gelsd").solution
    solution = solution[:, 0].to(t.device)
    d = t.shape[1]
    unit = solution[d + 1] if scale else torch.ones((), dtype=torch.float64, device=t.device)
    return Alignment(unit, solution[:d], solution[d])


def _inputs(samples: Tensor, network: nn.Module) -> Tensor:
    """What the network reads: window counts for the default, the samples as floats otherwise."""
    if not isinstance(network, LocalStatistic):
        return samples.float()
    axes = network.config["lattice_dim"]
    if samples.ndim != axes + 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}; the fit read {axes + 1} axes")
    return window_counts(samples)


def labelled(samples: Values, t: Values, box: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, their parameters and the box, all on the device of the samples, or a ValueError."""
    samples = as_tensor(samples, "samples")
    t, box = in_box(float64(t, "t").to(samples.device), box)
    require_finite("samples", samples)
    if len(samples) != len(t):
        raise ValueError(f"{len(samples)} samples but {len(t)} rows of t; give one row per sample")
    distinct = len(t.unique(dim=0))
    if distinct < 2:
        raise ValueError(f"t has {distinct} distinct parameters; at least two are needed")
    if len(t) < FEWEST:
        raise ValueError(
            f"{len(t)} samples are too few, a tenth is held out; give {FEWEST} or more"
        )
    return samples, t, box


def region(natural: Natural, box: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest natural coordinates over a lattice of the box, (d,) each."""
    d = box.shape[1]
    side = torch.linspace(0, 1, max(2, min(33, int(MOST_NODES ** (1 / d)))), dtype=box.dtype)
    theta = mapped(natural, mesh(box, side.expand(d, -1)))
    first, last = theta.amin(0), theta.amax(0)
    if not (last > first).all():
        still = (last <= first).nonzero().flatten().tolist()
        raise ValueError(f"natural(t) is constant over the box in its coordinates {still}")
    return first, last


def _check_nodes(grid: int, d: int) -> None:
    """Warn where every step of a fit would sum over very many nodes."""
    if grid**d > MOST_NODES:
        warnings.warn(
            f"grid={grid} in {d} dimensions: every step sums over {grid**d:,} nodes, which takes "
            f"minutes; grid={int(MOST_NODES ** (1 / d))} has {MOST_NODES:,} at most",
            stacklevel=3,
        )
