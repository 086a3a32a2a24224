"""The one-step estimator in divergence form: a posterior that is e^{−D} about a learned estimate.

Of an exponential family, the posterior in a box with a uniform prior is

    p(t|x) = e^{−D(θ(t), θ̂(x))} / ∫_box e^{−D(θ(t'), θ̂(x))} dt',    f(x) = ∇φ(θ̂(x)),

with D the Bregman divergence of φ = log Z: Theorem 3.1 for one sample, the estimate θ̂(x) in the
place of the true parameter. `fit_direct` learns f itself, `fit_divergence` learns θ̂. The law is the
same, the descent is not: where φ is flat, f = ∇φ(θ̂) is silent by construction. A driven chain has a
whole flat phase, and a freely learned f must find that silence to a part in N.
"""

import torch
from torch import Tensor

from lib.geometry.boxes import kronecker, warn_uneven
from lib.geometry.checks import Natural, Values, mapped, require_whole
from lib.geometry.descent import Descent, progress, small_matrices
from lib.geometry.networks import (
    PatternEstimate,
    SlopeAtEstimate,
    TangentPotential,
    window_counts,
)
from lib.geometry.potential import (
    Fit,
    Likelihood,
    identity,
    labelled,
    region,
)


def fit_divergence(
    samples: Values,
    t: Values,
    *,
    box: Values,
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
    require_whole(20, steps=steps)
    require_whole(2, points=points, pieces=pieces)
    require_whole(1, batch=batch)
    require_whole(0, seed=seed)
    samples, t, box = labelled(samples, t, box)
    warn_uneven(t, box)
    natural = natural or identity
    counts, sites = window_counts(samples), samples[0].numel()
    phi = TangentPotential(*region(natural, box), sites, pieces, seed)
    estimate = PatternEstimate(counts.shape[1], t.shape[1], sites, seed)
    network = SlopeAtEstimate(phi.config, estimate.config)
    network.potential, network.estimate = phi, estimate
    network.to(t.device)
    estimate.standardise(counts)
    fit = Fit(phi, network, natural, {})
    run = _Divergence(fit, counts, phi.rescale(mapped(natural, t)), box, points, batch, 0.0, seed)
    half = max(20, steps // 2)
    with progress("fit_divergence", 2 * steps + half) as bar, small_matrices():
        Descent(estimate.parameters(), 1e-2, steps).run(run.gaussian_loss, bar=bar)
        run.touch_estimates()
        Descent(phi.parameters(), 2e-2, half).run(run.likelihood_loss, bar=bar)
        run.watch(0)
        Descent(network.parameters(), 5e-3, steps).run(run.likelihood_loss, run.watch, bar=bar)
    fit.history = run.best.restore()
    phi.double()
    return fit


class _Divergence(Likelihood):
    """The losses of one fit; x holds window counts and `grid` the number of points."""

    def f(self, rows: Tensor | slice) -> Tensor:
        """The statistic in rescaled coordinates, (n, d)."""
        return self.phi.config["scale"] * self.fit.network.slope(self.x[rows])

    def gaussian_loss(self, step: int) -> Tensor:
        """Mean of −log N(s; ŝ(x), v(x)) over a batch, up to a constant."""
        rows = self.batch(4 * self.size)
        mean, log_variance = self.fit.network.estimate(self.x[rows])
        misfit = (self.s[rows] - mean).square() * (-log_variance).exp()
        return (misfit + log_variance).sum(1).mean() / 2

    def likelihood_loss(self, step: int) -> Tensor:
        """Mean of −log p(t|x) over a batch."""
        shift = torch.rand(self.box.shape[1], generator=self.generator)
        return -self.log_posterior(self.batch(self.size), shift).mean()

    @torch.no_grad()
    def touch_estimates(self) -> None:
        """Start φ: scale · 2 · bend is the inverse variance of a typical sharp coordinate."""
        mean, log_variance = self.fit.network.estimate(self.x[self.batch(len(self.phi.slope))])
        sharp = (-log_variance.amin(1)).exp().median()
        self.phi.touch(mean, float(sharp / (2 * self.phi.config["scale"])))

    def nodes(self, shift: Tensor) -> Tensor:
        """Points t of the integral: the sequence, shifted round the box, (points, d)."""
        fractions = (kronecker(self.grid, len(shift)).to(self.box) + shift.to(self.box)) % 1
        return self.box[0] + (self.box[1] - self.box[0]) * fractions
