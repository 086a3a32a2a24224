"""The one-step estimator in divergence form: a posterior that is e^{−D} about a learned estimate.

Of an exponential family, the posterior in a box with a uniform prior is

    p(t|x) = e^{−D(θ(t), θ̂(x))} / ∫_box e^{−D(θ(t'), θ̂(x))} dt',    f(x) = ∇φ(θ̂(x)),

with D the Bregman divergence of φ = log Z: Theorem 3.1 for one sample, the estimate θ̂(x) in the
place of the true parameter. `fit_direct` learns f itself, `fit_divergence` learns θ̂. The law is the
same, the descent is not: where φ is flat, f = ∇φ(θ̂) is silent by construction. A driven chain has a
whole flat phase, and a freely learned f must find that silence to a part in N.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.geometry.networks import window_counts
from lib.geometry.potential import (
    Fit,
    Natural,
    _check_sizes,
    _checked,
    _mesh,
    _require_finite,
    _small_matrices,
    _Training,
    identity,
)


def fit_divergence(
    samples,
    t,
    *,
    box,
    natural: Natural | None = None,
    seed: int = 0,
    steps: int = 1000,
    points: int = 1024,
    pieces: int = 100,
    batch: int = 128,
) -> Fit:
    """Fit log Z by maximum likelihood of the parameter, with f = ∇φ(θ̂(x)).

    1. θ̂ as the mean of a Gaussian with learned variances, −log N(θ; θ̂(x), v(x)): where one
       coordinate is sharp and the other unknown, a plain square would see the unknown one alone;
    2. φ by the likelihood of the module, θ̂ held. Its planes first touch a parabola, as bent as 1/v
       says, at estimates of random samples: a phase that shows one coordinate only asks for planes
       along a line;
    3. both.

    The integral is a mean over `points` of a Kronecker sequence, shifted at random in each step:
    all its coordinates differ, so a posterior that is a thin strip along an axis meets as many
    points as its area deserves; a square grid would miss it.

    samples: (n, L, L) or (n, N) with two states; θ̂ reads the logarithms of their window counts.
    t, box, natural: as in `fit_direct`. steps: of stages 1 and 3, stage 2 takes half.
    Returns a `Fit` as `fit_direct` does. Raises ValueError on the same input.
    """
    samples, t, box = _checked(samples, t, box)
    _check_sizes(samples, None, steps, points)
    natural = natural or identity
    corners = natural(_mesh(box, torch.linspace(0, 1, 33).expand(t.shape[1], -1)))
    _require_finite("natural(t) on the box", corners)
    sites = samples[0].numel()
    phi = TangentPotential(corners.amin(0), corners.amax(0), sites, pieces, seed)
    counts = window_counts(samples)
    estimate = PatternEstimate(counts.shape[1], t.shape[1], sites, seed)
    estimate.standardise(counts)
    network = SlopeAtEstimate(phi.config, estimate.config)
    network.potential, network.estimate = phi, estimate
    fit = Fit(phi, network.to(t.device), natural, {"step": [], "held_out": []})
    run = _Divergence(fit, counts, phi.rescale(natural(t)), box, points, batch, 0.0, seed)
    bar = tqdm(total=5 * steps // 2, desc="fit_divergence", disable=None, leave=False)
    with bar, _small_matrices():
        run.descend(run.gaussian_loss, estimate.parameters(), 1e-2, steps, bar)
        run.touch_estimates()
        run.descend(run.likelihood_loss, phi.parameters(), 2e-2, max(20, steps // 2), bar)
        run.watch(0)
        run.descend(run.likelihood_loss, network.parameters(), 5e-3, steps, bar, run.watch)
    run.restore_best()
    fit.history = {name: np.array(values) for name, values in fit.history.items()}
    phi.double()
    return fit


class TangentPotential(nn.Module):
    """Smooth convex φ: R^d → R, a soft maximum of planes: log Z of a site with k states.

    With s the input rescaled to [−1, 1]^d, φ = scale · τ log Σ_k exp((⟨a_k, s⟩ + b_k) / τ); its
    slope is a mean of the a_k. A phase is a plane or a row of planes, a border where one takes over
    from another, as sharp as τ; that φ ignores a coordinate takes no fine cancellation.

    lower, upper: (d,) corners of the rescaled region. scale: size of φ, the number of sites.
    pieces: planes; they start as tangents of |s|², and τ so that neighbours overlap.
    Source: Calafiore, Gaubert, Possieri, Log-sum-exp neural networks (2019).
    """

    def __init__(self, lower, upper, scale: float, pieces: int = 100, seed: int = 0):
        super().__init__()
        lower, upper = [float(a) for a in lower], [float(a) for a in upper]
        self.config = dict(lower=lower, upper=upper, scale=float(scale), pieces=pieces, seed=seed)
        low, high = (torch.tensor(a, dtype=torch.float64) for a in (lower, upper))
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("radius", (high - low) / 2)
        shift = torch.rand(len(lower), generator=torch.Generator().manual_seed(seed))
        touching = 2 * ((kronecker(pieces, len(lower)).float() + shift) % 1) - 1
        self.slope = nn.Parameter(torch.empty_like(touching))
        self.height = nn.Parameter(torch.empty(pieces))
        self.touch(touching)
        self.log_softness = nn.Parameter(torch.tensor(4 / pieces ** (2 / len(lower))).log())

    @torch.no_grad()
    def touch(self, s: Tensor, bend: float = 1.0) -> None:
        """Make the planes the tangents of bend · |s|² at the given points, (pieces, d)."""
        self.slope.copy_(2 * bend * s)
        self.height.copy_(-bend * s.square().sum(1))

    def exponents(self, s: Tensor) -> Tensor:
        """(⟨a_k, s⟩ + b_k) / τ at rescaled inputs s, (n, pieces)."""
        return (s @ self.slope.T + self.height) / self.log_softness.exp()

    def per_site(self, s: Tensor) -> Tensor:
        """φ / scale at rescaled inputs s of shape (n, d), shape (n,)."""
        return self.log_softness.exp() * self.exponents(s).logsumexp(1)

    def gradient(self, s: Tensor) -> Tensor:
        """∇φ / scale in rescaled coordinates, (n, d)."""
        return self.exponents(s).softmax(1) @ self.slope

    def rescale(self, theta: Tensor) -> Tensor:
        """θ to s in [−1, 1]^d, in the precision of the weights."""
        return ((theta - self.centre) / self.radius).to(self.slope.dtype)

    def forward(self, theta: Tensor) -> Tensor:
        """φ(θ) for θ of shape (n, d), shape (n,)."""
        return self.config["scale"] * self.per_site(self.rescale(torch.as_tensor(theta)))


class PatternEstimate(nn.Module):
    """Window counts (n, k) to θ̂ in rescaled coordinates and the logarithm of its variance.

    A perceptron on the standardised logarithms of the counts and of the odds of an occupied site:
    in a phase of independent sites these are θ itself.
    """

    def __init__(self, windows: int, d: int, sites: float, seed: int = 0, hidden: int = 64):
        super().__init__()
        self.config = dict(windows=windows, d=d, sites=sites, seed=seed, hidden=hidden)
        states = (torch.arange(windows)[:, None] >> torch.arange(windows.bit_length() - 1)) & 1
        self.register_buffer("up", states.float().mean(1))
        self.register_buffer("centre", torch.zeros(windows + 1))
        self.register_buffer("unit", torch.ones(windows + 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(windows + 1, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, 2 * d),
            )

    def features(self, counts: Tensor) -> Tensor:
        """Logarithms, with one window spread evenly against empty counts."""
        spread = 1 / (self.config["sites"] * self.config["windows"])
        up = counts @ self.up
        odds = torch.log((up + spread) / (1 - up + spread))
        return torch.cat([(counts + spread).log(), odds[:, None]], 1)

    def standardise(self, counts: Tensor) -> None:
        """Take centre and unit of the features from the data."""
        features = self.features(counts)
        self.centre.copy_(features.mean(0))
        self.unit.copy_(features.std(0) + 1e-6)

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """θ̂ (n, d) and log v (n, d)."""
        features = (self.features(counts) - self.centre) / self.unit
        return self.layers(features).chunk(2, 1)


class SlopeAtEstimate(nn.Module):
    """The statistic f/sites = ∇φ(θ̂(x))/sites in rescaled coordinates, from samples."""

    def __init__(self, potential: dict, estimate: dict):
        super().__init__()
        self.config = dict(potential=potential, estimate=estimate)
        self.potential = TangentPotential(**potential)
        self.estimate = PatternEstimate(**estimate)

    def slope(self, counts: Tensor) -> Tensor:
        """∇φ per site at the estimate of each row of window counts, (n, d)."""
        return self.potential.gradient(self.estimate(counts)[0].to(self.potential.slope.dtype))

    def forward(self, samples: Tensor) -> Tensor:
        """f/sites (n, d) of samples."""
        return self.slope(window_counts(samples))


class _Divergence(_Training):
    """The losses of one fit; x holds window counts and `grid` the number of points."""

    def f(self, rows) -> Tensor:
        """The statistic in rescaled coordinates, (n, d)."""
        return self.phi.config["scale"] * self.fit.network.slope(self.x[rows])

    def gaussian_loss(self) -> Tensor:
        """Mean of −log N(s; ŝ(x), v(x)) over a batch, up to a constant."""
        rows = self.batch(4 * self.size)
        mean, log_variance = self.fit.network.estimate(self.x[rows])
        misfit = (self.s[rows] - mean).square() * (-log_variance).exp()
        return (misfit + log_variance).sum(1).mean() / 2

    def likelihood_loss(self) -> Tensor:
        """Mean of −log p(t|x) over a batch."""
        shift = torch.rand(self.box.shape[1], generator=self.generator)
        return -self.log_posterior(self.batch(self.size), shift).mean()

    @torch.no_grad()
    def touch_estimates(self) -> None:
        """Start φ: scale · 2 · bend is the inverse variance of a typical sharp coordinate."""
        mean, log_variance = self.fit.network.estimate(self.x[self.batch(len(self.phi.slope))])
        sharp = (-log_variance.amin(1)).exp().median()
        self.phi.touch(mean, float(sharp / (2 * self.phi.config["scale"])))

    def energies(self, f: Tensor, shift: Tensor) -> Tensor:
        """⟨θ', f⟩ − φ(θ') on the shifted sequence, (n, points)."""
        fractions = (kronecker(self.grid, len(shift)).to(self.box) + shift.to(self.box)) % 1
        t = self.box[0] + (self.box[1] - self.box[0]) * fractions
        s = self.phi.rescale(self.fit.natural(t))
        return f @ s.T - self.phi.config["scale"] * self.phi.per_site(s)


def kronecker(points: int, d: int) -> Tensor:
    """Evenly spread points k (1/γ, …, 1/γ^d) mod 1 of the unit cube, (points, d) float64.

    γ > 1 solves γ^{d+1} = γ + 1, the golden ratio for d = 1. Source: Roberts (2018).
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (d + 1))
    steps = torch.tensor([math.pow(ratio, -j) for j in range(1, d + 1)], dtype=torch.float64)
    return (torch.arange(points, dtype=torch.float64)[:, None] * steps) % 1
