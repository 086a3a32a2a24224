"""Learn log Z from samples and their parameters: a convex potential, its Hessian the metric.

For an exponential family p(x|θ) = exp(⟨θ, f(x)⟩ − φ(θ)), φ = log Z, and parameters drawn uniformly
in a box, the posterior of the parameter is

    log p(t|x) = ⟨θ(t), f(x)⟩ − φ(θ(t)) − log ∫_box exp(⟨θ(t'), f(x)⟩ − φ(θ(t'))) dt'.

`fit_direct` maximises it in f and φ together: no binned posterior, no bump, no second fit.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from lib.geometry.networks import ConvexPotential, LocalStatistic, window_counts
from lib.geometry.two_step import fit_posteriors as fit_posteriors  # the paper's second step

Natural = Callable[[Tensor], Tensor]


def identity(t: Tensor) -> Tensor:
    """Coordinates that are natural already."""
    return t


@dataclass
class Fit:
    """A fitted exponential family.

    potential: θ (n, d) -> log Z (n,), float64, up to an affine function of θ.
    network: samples (or their window counts) -> f/sites in the rescaled coordinates.
    natural: t -> θ.
    history: "step" and "held_out", the held-out negative log-likelihood in nats against the
    uniform density on the box; step 0 is the warm start.
    """

    potential: ConvexPotential
    network: nn.Module
    natural: Natural
    history: dict

    def statistic(self, samples) -> Tensor:
        """f(x), shape (n, d) float64, up to a constant; samples shaped like those of the fit."""
        with torch.no_grad():
            f = self.network(_inputs(torch.as_tensor(samples), self.network))
        return f.double() * self.potential.config["scale"] / self.potential.radius


def fit_direct(
    samples,
    t,
    *,
    box,
    natural: Natural | None = None,
    network: nn.Module | None = None,
    collective: bool = False,
    seed: int = 0,
    steps: int = 1000,
    grid: int = 48,
    width: int = 48,
    roughness: float = 1e-3,
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
    t: (n, d) in the caller's units. box: (2, d), lower and upper corner; the prior is uniform in t.
    natural: t -> θ, torch operations. network: samples -> f/sites; the default reads local windows,
    and `collective` makes it nonlinear in their frequencies. grid: points per axis of the integral.
    roughness: price of `ConvexPotential.roughness`, without which the Hessian ripples.
    steps: of stages 1 and 3, stage 2 takes twice as many. Trains in float32, returns float64.
    Raises ValueError on samples outside the box or not finite, fewer than two distinct parameters,
    lengths that differ, a `natural` that is not finite on the box, fewer than 20 steps, and a grid
    too coarse for the data.
    """
    samples, t, box = _checked(samples, t, box)
    _check_sizes(samples, network, steps, grid)
    natural = natural or identity
    d, sites = t.shape[1], samples[0].numel()
    corners = natural(_mesh(box, torch.linspace(0, 1, 33).expand(d, -1)))
    _require_finite("natural(t) on the box", corners)
    phi = ConvexPotential(corners.amin(0), corners.amax(0), sites, width, seed).to(t.device)
    default = LocalStatistic(samples.ndim - 1, d, collective, seed) if network is None else network
    network = copy.deepcopy(default).to(t.device)
    fit = Fit(phi, network, natural, {"step": [], "held_out": []})
    run = _Training(
        fit, _inputs(samples, network), phi.rescale(natural(t)), box, grid, batch, roughness, seed
    )
    bar = tqdm(total=4 * steps, desc="fit_direct", disable=None, leave=False)
    with bar, _small_matrices():
        run.descend(run.swap_loss, network.parameters(), 3e-2, steps, bar)
        run.start_from_mean_slope()
        run.descend(run.matching_loss, phi.parameters(), 3e-2, 2 * steps, bar)
        run.refuse_coarse_grid()
        run.watch(0)
        both = [*phi.parameters(), *network.parameters()]
        run.descend(run.likelihood_loss, both, 2e-3, steps, bar, run.watch)
    run.restore_best()
    fit.history = {name: np.array(values) for name, values in fit.history.items()}
    phi.double()
    return fit


@dataclass
class _Training:
    """The losses of one fit: inputs x and rescaled parameters s, a tenth of them held out."""

    fit: Fit
    x: Tensor
    s: Tensor
    box: Tensor
    grid: int
    size: int
    roughness: float
    seed: int
    best: tuple = (math.inf, None)
    generator: torch.Generator = field(init=False)

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)
        shuffle = torch.randperm(len(self.s), generator=self.generator)
        self.x, self.s = self.x[shuffle], self.s[shuffle]
        self.training = len(self.s) - max(1, len(self.s) // 10)

    @property
    def phi(self) -> ConvexPotential:
        return self.fit.potential

    def f(self, rows) -> Tensor:
        """The statistic in rescaled coordinates, (n, d)."""
        return self.phi.config["scale"] * self.fit.network(self.x[rows])

    def batch(self, size: int) -> Tensor:
        """Row numbers of a random training batch."""
        return torch.randint(self.training, (size,), generator=self.generator)

    def swap_loss(self) -> Tensor:
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

    def matching_loss(self) -> Tensor:
        """Mean squared distance of ∇φ and f, both per site, and the price of roughness."""
        rows = self.batch(2 * self.size)
        with torch.no_grad():
            target = self.fit.network(self.x[rows])
        s = self.s[rows].requires_grad_()
        (gradient,) = torch.autograd.grad(self.phi.per_site(s).sum(), s, create_graph=True)
        distance = (gradient - target).square().sum(1).mean()
        return distance + self.roughness * self.phi.roughness()

    def likelihood_loss(self) -> Tensor:
        """Mean of −log p(t|x) over a batch, the grid shifted at random, and the same price."""
        shift = torch.rand(self.box.shape[1], generator=self.generator)
        loss = -self.log_posterior(self.batch(self.size), shift).mean()
        return loss + self.roughness * self.phi.roughness()

    def energies(self, f: Tensor, shift: Tensor) -> Tensor:
        """⟨θ', f⟩ − φ(θ') on the shifted grid, (n, g^d)."""
        steps = (torch.arange(self.grid) + shift[:, None]) / self.grid
        points = self.phi.rescale(self.fit.natural(_mesh(self.box, steps)))
        return f @ points.T - self.phi.config["scale"] * self.phi.per_site(points)

    def log_posterior(self, rows, shift: Tensor) -> Tensor:
        """log p(t|x) in nats against the uniform density on the box, (n,)."""
        f, s = self.f(rows), self.s[rows]
        energies = self.energies(f, shift)
        own = (f * s).sum(1) - self.phi.config["scale"] * self.phi.per_site(s)
        return own - torch.logsumexp(energies, 1) + math.log(energies.shape[1])

    @torch.no_grad()
    def watch(self, step: int) -> None:
        """Record the held-out loss and keep the best weights."""
        rows = slice(self.training, self.training + 1024)
        loss = -self.log_posterior(rows, torch.full((self.box.shape[1],), 0.5)).mean().item()
        self.fit.history["step"].append(step)
        self.fit.history["held_out"].append(loss)
        if loss < self.best[0]:
            parts = (self.phi, self.fit.network)
            self.best = loss, [copy.deepcopy(part.state_dict()) for part in parts]

    def restore_best(self) -> None:
        """Early stopping: back to the weights with the best held-out loss."""
        for part, state in zip((self.phi, self.fit.network), self.best[1], strict=True):
            part.load_state_dict(state)

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

    def descend(self, loss, parameters, rate: float, steps: int, bar, watch=None) -> None:
        """Adam with a one-cycle rate; `watch(step)` is called ten times."""
        optimizer = torch.optim.Adam(list(parameters), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps, pct_start=0.1
        )
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if watch and step % max(1, steps // 10) == 0:
                watch(step)


@dataclass
class Alignment:
    """reference ≈ scale · estimate + ⟨slope, t⟩ + offset; one alignment for all derivatives."""

    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __call__(self, values, t) -> Tensor:
        """Aligned values (n,) at t (n, d)."""
        return self.scale * _float64(values) + _float64(t) @ self.slope + self.offset

    def gradient(self, gradient) -> Tensor:
        """Aligned gradients (n, d)."""
        return self.scale * _float64(gradient) + self.slope

    def hessian(self, hessian) -> Tensor:
        """Aligned Hessians (n, d, d): an affine function has none."""
        return self.scale * _float64(hessian)


def align_affine(estimate, reference, t, *, scale: bool = False) -> Alignment:
    """Least squares of the reference on the estimate plus an affine function of t.

    log Z is known from samples only up to an affine function of θ (Theorem 3.2), so every score of
    its values or slopes needs this first; `scale=True` also frees the unit of the estimate.

    estimate, reference: (n,). t: (n, d), the coordinates in which the freedom is affine.
    Raises ValueError on lengths that differ or values that are not finite.
    """
    estimate, reference, t = _float64(estimate), _float64(reference), _float64(t)
    shapes = tuple(estimate.shape), tuple(reference.shape), tuple(t.shape)
    if t.ndim != 2 or not shapes[0] == shapes[1] == shapes[2][:1]:
        raise ValueError(
            f"estimate, reference, t have shapes {shapes}; expected (n,), (n,) and (n, d)"
        )
    for name, values in (("estimate", estimate), ("reference", reference), ("t", t)):
        _require_finite(name, values)
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


@contextlib.contextmanager
def _small_matrices():
    """CPU settings for many short steps.

    Sharp posteriors are full of subnormal floats, which slow a CPU down twenty times or more; and
    on matrices this small a second thread mostly waits, on a busy machine for long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def _inputs(samples: Tensor, network: nn.Module) -> Tensor:
    """What the network reads: window counts for the default, the samples as floats otherwise."""
    return window_counts(samples) if isinstance(network, LocalStatistic) else samples.float()


def _mesh(box: Tensor, fractions: Tensor) -> Tensor:
    """Points lo + fraction · (hi − lo) of the product of (d, g) fractions per axis, (g^d, d)."""
    axes = box[0, :, None] + (box[1] - box[0])[:, None] * fractions.to(box)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def _float64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _require_finite(name: str, values: Tensor) -> None:
    bad = (~values.isfinite()).sum().item()
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; remove or mend them")


def _check_sizes(samples: Tensor, network: nn.Module | None, steps: int, grid: int) -> None:
    if steps < 20 or grid < 2:
        raise ValueError(f"steps={steps}, grid={grid}; allowed are steps >= 20 and grid >= 2")
    if network is None and (samples.ndim not in (2, 3) or min(samples.shape[1:]) < 3):
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}: the default network reads chains (n, N) "
            "or lattices (n, L, L) of at least 3 sites a side; give network= for anything else"
        )
    if network is None and len(samples[:4096].unique()) > 2:
        raise ValueError(
            "samples hold more than two values: the default network reads two-state systems; "
            "give network= for anything else"
        )


def _checked(samples, t, box) -> tuple[Tensor, Tensor, Tensor]:
    samples, t = torch.as_tensor(samples), _float64(t)
    box = _float64(box).to(t.device)
    if t.ndim != 2 or box.shape != (2, t.shape[1]) or not (box[1] > box[0]).all():
        raise ValueError(
            f"box={box.tolist()} for t of shape {tuple(t.shape)}: t is (n, d) and box (2, d), "
            "the lower corner first"
        )
    _require_finite("box", box)
    _require_finite("samples", samples)
    if len(samples) != len(t):
        raise ValueError(f"{len(samples)} samples but {len(t)} rows of t; give one row per sample")
    _require_finite("t", t)
    outside = ((t < box[0]) | (t > box[1])).any(1)
    if outside.any():
        raise ValueError(
            f"{outside.sum().item()} samples lie outside the box {box.tolist()}, the first at "
            f"t={t[outside][0].tolist()}; widen the box or drop them"
        )
    distinct = len(t.unique(dim=0))
    if distinct < 2:
        raise ValueError(f"t has {distinct} distinct parameters; at least two are needed")
    return samples, t, box
