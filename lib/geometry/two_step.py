"""The second step of the two-step estimator: log Z from posterior maps.

By Theorem 3.1 of Lobashev et al. 2025 the posterior of N samples drawn at t' tends to

    p(t|x_1..x_N)^{1/N} -> e^{−D(t, t')},   D(t, t') = φ(t) − φ(t') − ⟨∇φ(t'), t − t'⟩,

the Bregman divergence of φ = log Z. `fit_posteriors` looks for the convex φ whose divergences
explain given maps.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.geometry.boxes import as_box, centres, in_box, unit_square
from lib.geometry.checks import Natural, Values, as_tensor, float64, mapped, require_whole
from lib.geometry.descent import Best, Descent, progress, subnormals_flushed
from lib.geometry.networks import ConvexPotential, FreePotential, PotentialNetwork
from lib.geometry.potential import Fit, identity, region


def fit_posteriors(
    maps: Values,
    t: Values,
    *,
    box: Values,
    natural: Natural | None = None,
    count: float = 1.0,
    convex: bool = True,
    width: int = 32,
    steps: int = 1000,
    seed: int = 0,
    batch: int = 128,
    rate: float = 1e-2,
) -> Fit:
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
    convex: False fits a `FreePotential`, whose convexity is then a finding and no assumption.
    Returns a `Fit`; its history holds the loss of a tenth of the maps, in nats, and its
    `statistic(maps)` is the posterior mean of ∇φ, which is f(x) where the map fades inside the box.
    Raises ValueError on maps that are no probabilities or made on another box than t, lengths that
    differ, and parameters outside the box. Source: Lobashev et al. 2025, Eq. 22-24.
    """
    require_whole(1, steps=steps, batch=batch, width=width)
    require_whole(0, seed=seed)
    if not count > 0:
        raise ValueError(f"count={count}; give a positive number of samples behind a map")
    maps, t, box = _checked(maps, t, box)
    natural = natural or identity
    nodes = mapped(natural, centres(box, maps.shape[1]))
    first, last = region(natural, box)
    sharpness = _inverse_variance(maps, 2 * (nodes - first) / (last - first) - 1)
    kind = ConvexPotential if convex else FreePotential
    phi = kind(first, last, sharpness / count, width, seed).to(t.device)
    run = _Training(phi, maps, mapped(natural, t), nodes, count, batch, seed)
    with progress("fit_posteriors", steps) as bar, subnormals_flushed():
        descent = Descent(phi.parameters(), rate, steps)
        descent.run(lambda step: run.loss(step <= steps // 3), run.watch, bar=bar)
    history = run.best.restore()
    phi.double()
    return Fit(phi, _MeanSlope(phi, nodes), natural, history)


def centroids(maps: Values, box: Values) -> Tensor:
    """Posterior mean of t for each map (n, g, g), (n, 2) float64 in the units of the box."""
    maps = float64(maps, "maps")
    return maps.flatten(1) @ centres(as_box(box).to(maps.device), maps.shape[1])


class _MeanSlope(nn.Module):
    """Maps to the posterior mean of ∇φ/scale; ∫ p (f − ∇φ) dθ = ∫ ∇p dθ = 0 makes it f/scale."""

    def __init__(self, phi: PotentialNetwork, nodes: Tensor):
        super().__init__()
        slopes = torch.func.grad(lambda s: phi.per_site(s).sum())(phi.rescale(nodes))
        self.register_buffer("slopes", slopes.detach())

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(1).to(self.slopes) @ self.slopes


@dataclass
class _Training:
    """One fit: maps (n, g²), their parameters and the cells in rescaled coordinates."""

    phi: PotentialNetwork
    maps: Tensor
    theta: Tensor
    nodes: Tensor
    count: float
    size: int
    seed: int
    best: Best = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.best = Best(self.phi)
        self.generator = torch.Generator().manual_seed(self.seed)
        shuffle = torch.randperm(len(self.theta), generator=self.generator)
        self.maps = self.maps.flatten(1)[shuffle]
        self.s = self.phi.rescale(self.theta)[shuffle]
        self.cells = self.phi.rescale(self.nodes)
        self.training = len(self.s) - max(1, len(self.s) // 10)

    def log_model(self, rows: Tensor | slice) -> Tensor:
        """log p_φ(t|t') over the cells, (n, g²)."""
        s = self.s[rows].requires_grad_()
        with torch.enable_grad():
            value = self.phi.per_site(s).sum()
            (slope,) = torch.autograd.grad(value, s, create_graph=True)
        energies = slope @ self.cells.T - self.phi.per_site(self.cells)
        return (self.count * self.phi.config["scale"] * energies).log_softmax(1)

    def divergence(self, rows: Tensor | slice, log_model: Tensor) -> Tensor:
        """Mean Jensen-Shannon divergence of maps and model."""
        maps, log_map = self.maps[rows], self.maps[rows].clamp_min(1e-30).log()
        log_middle = torch.logaddexp(log_map, log_model) - math.log(2)
        model = log_model.exp()
        return (
            ((maps * (log_map - log_middle) + model * (log_model - log_middle)) / 2).sum(1).mean()
        )

    def loss(self, warm: bool) -> Tensor:
        """KL while warming up, then Jensen-Shannon."""
        rows = torch.randint(self.training, (self.size,), generator=self.generator)
        log_model = self.log_model(rows)
        if warm:
            return -(self.maps[rows] * log_model).sum(1).mean()
        return self.divergence(rows, log_model)

    def watch(self, step: int) -> None:
        """Record the held-out Jensen-Shannon divergence, keep the best weights."""
        rows = slice(self.training, self.training + 512)
        self.best.watch(step, self.divergence(rows, self.log_model(rows).detach()).item())


def _inverse_variance(maps: Tensor, places: Tensor) -> float:
    """Typical curvature of −log map per axis: the median of d / trace of the covariance."""
    places = places.to(maps)
    mean = maps.flatten(1) @ places
    spread = maps.flatten(1) @ places.square() - mean.square()
    cell = (2 / maps.shape[1]) ** 2 / 12  # a map of one cell is no narrower than that
    return (1 / (spread.mean(1).clamp_min(0) + cell)).median().item()


def _checked(maps: Values, t: Values, box: Values) -> tuple[Tensor, Tensor, Tensor]:
    maps = as_tensor(maps, "maps").float()
    t = float64(t, "t").to(maps.device)
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
    t, box = in_box(t, box)
    u = unit_square(t, box)
    grid = maps.shape[1]
    cell = (u * grid).long().clamp(max=grid - 1)
    own = maps[torch.arange(len(maps), device=maps.device), cell[:, 0], cell[:, 1]].median().item()
    if own < 0.5 / grid**2:
        raise ValueError(
            f"half of the maps give their own parameter at most {own:.2g}, less than a uniform map "
            f"({1 / grid**2:.2g}); were they made on another box than {box.tolist()}, or "
            "with the axes swapped?"
        )
    return maps, t, box
