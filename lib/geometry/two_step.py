"""The second step of the two-step estimator, log Z from posterior maps, and the theorem behind it.

By Theorem 3.1 of Lobashev et al. 2025 the posterior of N samples drawn at t' tends to

    p(t|x_1..x_N)^{1/N} -> e^{−D(t, t')},   D(t, t') = φ(t) − φ(t') − ⟨∇φ(t'), t − t'⟩,

the Bregman divergence of φ = log Z. `fit_posteriors` looks for the convex φ whose divergences
explain given maps; `posterior_convergence` measures the theorem itself.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.geometry.cells import cell_centres, cells, unit_square
from lib.geometry.networks import ConvexPotential, FreePotential
from lib.geometry.posterior import subnormals_flushed

if TYPE_CHECKING:
    from lib.geometry.potential import Fit

Potential = Callable[[Tensor], Tensor]


def bregman(potential: Potential, t, t0) -> Tensor:
    """Bregman divergence D(t, t₀) = φ(t) − φ(t₀) − ⟨∇φ(t₀), t − t₀⟩, row by row.

    For φ = log Z of an exponential family it is KL(p(·|t₀) ‖ p(·|t)), in nats. Adding an affine
    function to φ changes nothing.

    potential: (n, d) -> (n,), each row from its own row. t: (n, d). t0: (n, d), or (1, d) for all.
    Returns (n,) float64. Raises ValueError on other shapes.
    Source: Lobashev et al. 2025, Eq. 11-12.
    """
    t, t0 = _float64(t), _float64(t0).to(torch.as_tensor(t).device)
    if t.ndim != 2 or t0.ndim != 2 or len(t0) not in (1, len(t)) or t.shape[1] != t0.shape[1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, t0 {tuple(t0.shape)}; give (n, d) and (n, d) or (1, d)"
        )
    slope = torch.func.grad(lambda s: potential(s).sum())(t0)
    return potential(t) - potential(t0) - (slope * (t - t0)).sum(1)


def fit_posteriors(
    maps,
    t,
    *,
    box,
    natural: Potential | None = None,
    count: float = 1.0,
    centroid: bool = False,
    convex: bool = True,
    width: int = 32,
    steps: int = 1000,
    seed: int = 0,
    batch: int = 128,
    rate: float = 1e-2,
) -> "Fit":
    """Fit log Z to posterior maps by the Jensen-Shannon loss, the paper's second step.

    With θ = natural(t) and N = count, the model of the map of parameter t' is

        p_φ(t|t') ∝ exp(N (⟨θ(t), ∇φ(θ')⟩ − φ(θ(t)))),

    a log-softmax over the cells, and the loss the mean of JSD(map, p_φ) <= log 2. Far from the
    solution this loss is flat, so the first third of the steps descends KL(map ‖ p_φ) instead.

    maps: (n, g, g) on the box, `indexing="ij"`, each summing to one.
    t: (n, 2), the parameter of each map. The true one, as in the paper, is right for N → ∞ only: at
    finite N a map is centred a posterior width away from it, the fit pays for that by blurring,
    and curvatures come out near 0.6 of the truth; `t=centroids(maps, box)` removes this bias.
    count: samples behind a map (its bundle), so that the result belongs to one sample.
    centroid: add the distance of the centroids of map and model over √2, in the unit square, as
    the released code does.
    convex: False fits a `FreePotential`, whose convexity is then a finding and no assumption.
    width: of the network.
    Returns a `Fit`; its history holds the Jensen-Shannon loss of a tenth of the maps, in nats, and
    its `statistic(maps)` is the posterior mean of ∇φ, which is f(x) where the map fades inside the
    box. Trains in float32, returns float64.
    Raises ValueError on maps that are not (n, g, g), negative, not summing to one, or made on
    another box than t, lengths that differ, parameters outside the box and fewer than two.
    Source: Lobashev et al. 2025, Eq. 22-24.
    """
    from lib.geometry.potential import Fit, identity  # it re-exports this function

    maps, t, box = _checked(maps, t, box)
    if not count > 0 or steps < 1 or batch < 1:
        raise ValueError(f"count={count}, steps={steps}, batch={batch}; all must be positive")
    natural = natural or identity
    lower, upper = box
    nodes = natural(lower + (upper - lower) * cells(maps.shape[1]).to(t.device))
    edges = natural(lower + (upper - lower) * _lattice(33).to(t.device))
    first, last = edges.amin(0), edges.amax(0)
    sharpness = _inverse_variance(maps, 2 * (nodes - first) / (last - first) - 1)
    kind = ConvexPotential if convex else FreePotential
    phi = kind(first, last, sharpness / count, width, seed).to(t.device)
    run = _Training(phi, maps, natural(t), nodes, count, centroid, batch, seed)
    with subnormals_flushed():
        history = run.descend(rate, steps)
    phi.double()
    return Fit(phi, _MeanSlope(phi, nodes), natural, history)


def centroids(maps, box) -> Tensor:
    """Posterior mean of t for each map (n, g, g), (n, 2) float64 in the units of the box."""
    maps, (lower, upper) = torch.as_tensor(maps), _float64(box)
    places = lower + (upper - lower) * cells(maps.shape[1])
    return maps.double().flatten(1) @ places.to(maps.device)


class _MeanSlope(nn.Module):
    """Maps to the posterior mean of ∇φ/scale; ∫ p (f − ∇φ) dθ = ∫ ∇p dθ = 0 makes it f/scale."""

    def __init__(self, phi: ConvexPotential, nodes: Tensor):
        super().__init__()
        slopes = torch.func.grad(lambda s: phi.per_site(s).sum())(phi.rescale(nodes))
        self.register_buffer("slopes", slopes.detach())

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(1).to(self.slopes) @ self.slopes


@dataclass
class _Training:
    """One fit: maps (n, g²), their parameters and the cells in rescaled coordinates."""

    phi: ConvexPotential
    maps: Tensor
    theta: Tensor
    nodes: Tensor
    count: float
    centroid: bool
    size: int
    seed: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)
        shuffle = torch.randperm(len(self.theta), generator=self.generator)
        grid = self.maps.shape[1]
        self.places = cells(grid).to(self.maps)
        self.maps = self.maps.flatten(1)[shuffle]
        self.s = self.phi.rescale(self.theta)[shuffle]
        self.cells = self.phi.rescale(self.nodes)
        self.training = len(self.s) - max(1, len(self.s) // 10)

    def log_model(self, rows) -> Tensor:
        """log p_φ(t|t') over the cells, (n, g²)."""
        s = self.s[rows].requires_grad_()
        with torch.enable_grad():
            value = self.phi.per_site(s).sum()
            (slope,) = torch.autograd.grad(value, s, create_graph=True)
        energies = slope @ self.cells.T - self.phi.per_site(self.cells)
        return (self.count * self.phi.config["scale"] * energies).log_softmax(1)

    def divergence(self, rows, log_model: Tensor) -> Tensor:
        """Mean Jensen-Shannon divergence of maps and model."""
        maps, log_map = self.maps[rows], self.maps[rows].clamp_min(1e-30).log()
        log_middle = torch.logaddexp(log_map, log_model) - math.log(2)
        model = log_model.exp()
        return (
            ((maps * (log_map - log_middle) + model * (log_model - log_middle)) / 2).sum(1).mean()
        )

    def loss(self, rows, warm: bool) -> Tensor:
        """KL while warming up, then Jensen-Shannon, with the distance of the centroids if asked."""
        log_model = self.log_model(rows)
        if warm:
            loss = -(self.maps[rows] * log_model).sum(1).mean()
        else:
            loss = self.divergence(rows, log_model)
        if self.centroid:
            apart = (self.maps[rows] - log_model.exp()) @ self.places
            loss = loss + (apart.square().sum(1) + 1e-12).sqrt().mean() / math.sqrt(2)
        return loss

    def descend(self, rate: float, steps: int) -> dict:
        """Adam with a one-cycle rate; back to the weights with the best held-out divergence."""
        optimizer = torch.optim.Adam(self.phi.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps, pct_start=0.1
        )
        history, best = {"step": [], "held_out": []}, (math.inf, None)
        held_out = slice(self.training, self.training + 512)
        for step in tqdm(range(1, steps + 1), desc="fit_posteriors", disable=None, leave=False):
            rows = torch.randint(self.training, (self.size,), generator=self.generator)
            optimizer.zero_grad()
            self.loss(rows, step <= steps // 3).backward()
            optimizer.step()
            schedule.step()
            if step % max(1, steps // 10) == 0:
                loss = self.divergence(held_out, self.log_model(held_out).detach()).item()
                history["step"].append(step)
                history["held_out"].append(loss)
                if loss < best[0]:
                    best = loss, copy.deepcopy(self.phi.state_dict())
        self.phi.load_state_dict(best[1])
        return {name: np.array(values) for name, values in history.items()}


@dataclass
class Rate:
    """Errors (repeats, k) and the slope of log root-mean-square error against log N.

    interval: central 95% of the slope when the repeats are drawn anew with replacement.
    """

    error: np.ndarray
    slope: float
    interval: tuple[float, float]


@dataclass
class Convergence:
    """Theorem 3.1 in numbers at counts N (k,), errors as root mean squares over the box.

    density: p^{1/N} − e^{−D}. divergence: −log(p(t|x) / p(t₀|x)) / N − D.
    """

    counts: np.ndarray
    density: Rate
    divergence: Rate


def posterior_convergence(
    potential: Potential, statistics, t0, *, box, counts=None, grid: int = 64, least: int = 1
) -> Convergence:
    """N-th root of the exact posterior of N samples against e^{−D(t, t₀)}: Theorem 3.1 measured.

    The posterior depends on the samples through the mean f̄ of their statistics alone,

        p(t|x_1..x_N) = exp(N (⟨t, f̄⟩ − φ(t))) / ∫_box exp(N (⟨t', f̄⟩ − φ(t'))) dt',

    a density in the unit box. −log(p(t|x)/p(t₀|x))/N − D = −⟨t − t₀, f̄ − ∇φ(t₀)⟩ for every N,
    with variance (t − t₀)ᵀ ∇²φ(t₀) (t − t₀) / N: slope −1/2. The evidence adds d log N / 2N to
    log p^{1/N}, so the slope of the density itself is steeper and tends to −1/2 slowly.

    potential: exact φ = log Z in natural coordinates, (n, d) -> (n,). statistics: (repeats, N_max,
    d), f of independent samples drawn at t0. t0: (d,). box: (2, d), t0 inside. counts: N to
    evaluate, by default powers of two up to N_max. grid: cells per axis. least: smallest N in the
    fitted slopes. Raises ValueError on shapes that disagree, counts beyond N_max or too few.
    Source: Lobashev et al. 2025, Theorem 3.1; the rates are ours.
    """
    statistics, t0, box = _float64(statistics), _float64(t0), _float64(box)
    counts = _counts(statistics, t0, box, counts, least)
    lower, upper = box
    t = lower + (upper - lower) * _lattice_centres(grid, len(t0))
    exact, phi, own = bregman(potential, t, t0[None]), potential(t), potential(t0[None])
    sums, errors = statistics.cumsum(1), []
    for n in counts:
        log = sums[:, n - 1] @ t.T - n * phi
        start = sums[:, n - 1] @ t0 - n * own
        evidence = log.logsumexp(1, keepdim=True) - math.log(len(t))
        density = ((log - evidence) / n).exp() - torch.exp(-exact)
        divergence = (start[:, None] - log) / n - exact
        errors.append(torch.stack([density, divergence]).square().mean(2).sqrt())
    error = torch.stack(errors, 2).numpy()
    fitted = counts >= least
    return Convergence(counts, *(_rate(counts, part, fitted) for part in error))


def _rate(counts: np.ndarray, error: np.ndarray, fitted: np.ndarray) -> Rate:
    """Least-squares slope of log root-mean-square error, with its bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(error), size=(1000, len(error)))
    squares = np.concatenate([error[None], error[draws]])[:, :, fitted] ** 2
    slopes = np.polyfit(np.log(counts[fitted]), np.log(squares.mean(1)).T / 2, 1)[0]
    low, high = np.quantile(slopes[1:], [0.025, 0.975])
    return Rate(error, float(slopes[0]), (float(low), float(high)))


def _counts(statistics: Tensor, t0: Tensor, box: Tensor, counts, least: int) -> np.ndarray:
    """Checked sample counts."""
    d = len(t0) if t0.ndim == 1 else None
    if statistics.ndim != 3 or statistics.shape[2] != d or box.shape != (2, d):
        shapes = tuple(statistics.shape), tuple(t0.shape), tuple(box.shape)
        raise ValueError(
            f"statistics, t0, box have shapes {shapes}; expected (repeats, N, d), (d,) and (2, d)"
        )
    if not ((t0 > box[0]) & (t0 < box[1])).all():
        raise ValueError(f"t0={t0.tolist()} is not inside the box {box.tolist()}")
    most = statistics.shape[1]
    if counts is None:
        counts = 2 ** np.arange(most.bit_length())
    counts = np.asarray(counts)
    if counts.min() < 1 or counts.max() > most or len(np.unique(counts[counts >= least])) < 2:
        raise ValueError(
            f"counts={counts.tolist()}, least={least}; give two or more counts >= least, between 1 "
            f"and the {most} samples there are"
        )
    return counts


def _lattice(points: int) -> Tensor:
    """Points of the closed unit square, (points², 2)."""
    axis = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def _lattice_centres(grid: int, d: int) -> Tensor:
    """Cell centres of the unit cube, (grid^d, d)."""
    return torch.cartesian_prod(*[cell_centres(grid)] * d).reshape(-1, d)


def _inverse_variance(maps: Tensor, places: Tensor) -> float:
    """Typical curvature of −log map per axis: the median of d / trace of the covariance."""
    places = places.to(maps)
    mean = maps.flatten(1) @ places
    spread = maps.flatten(1) @ places.square() - mean.square()
    cell = (2 / maps.shape[1]) ** 2 / 12  # a map of one cell is no narrower than that
    return (1 / (spread.mean(1).clamp_min(0) + cell)).median().item()


def _float64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _checked(maps, t, box) -> tuple[Tensor, Tensor, Tensor]:
    maps, t = torch.as_tensor(maps).float(), _float64(t)
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or len(maps) != len(t) or len(t) < 2:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)} for {len(t)} rows of t; give (n, g, g), one map "
            "per row, n >= 2"
        )
    total = maps.sum((1, 2))
    bad = ~((total - 1).abs() < 1e-3) | (maps < 0).flatten(1).any(1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} maps are no probabilities, the first sums to "
            f"{total[bad][0].item():.6g}; each map is non-negative and sums to one"
        )
    u = unit_square(t, box)
    grid = maps.shape[1]
    cell = (u * grid).long().clamp(max=grid - 1)
    own = maps[torch.arange(len(maps), device=maps.device), cell[:, 0], cell[:, 1]].median().item()
    if own < 0.5 / grid**2:
        raise ValueError(
            f"half of the maps give their own parameter at most {own:.2g}, less than a uniform map "
            f"({1 / grid**2:.2g}); were they made on another box than {_float64(box).tolist()}, or "
            "with the axes swapped?"
        )
    return maps, t, _float64(box).to(t.device)
