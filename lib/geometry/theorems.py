"""The theorems of Lobashev et al. 2025 in numbers.

Theorem 3.1: does the root of the posterior tend to e^{−D}, and how fast? `posterior_convergence`.
Theorem 3.2: how far apart are two potentials in divergence, and in their Hessians?

    divergence gap   (∬ |e^{−D₁(t, t')} − e^{−D₂(t, t')}|² dt dt')^{1/2} over the box,
    Hessian gap      max ‖∇²φ₁ − ∇²φ₂‖ over the box.

An affine function changes neither. The theorem says that a vanishing first makes the second vanish.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import intervals
from lib.geometry.boxes import as_box, centres
from lib.geometry.checks import Potential, Values, float64, require_whole
from lib.geometry.metric import fisher_metric
from lib.geometry.potential import bregman


def divergence_gap(first: Potential, second: Potential, *, box: Values, grid: int = 24) -> float:
    """Root mean square of e^{−D₁} − e^{−D₂} over pairs of cell centres of the box (2, d)."""
    require_whole(2, grid=grid)
    t = centres(box, grid)
    pairs = t.repeat_interleave(len(t), 0), t.repeat(len(t), 1)
    gap = torch.exp(-bregman(first, *pairs)) - torch.exp(-bregman(second, *pairs))
    return gap.detach().square().mean().sqrt().item()


def hessian_gap(first: Potential, second: Potential, *, box: Values, grid: int = 24) -> float:
    """Largest Frobenius norm of ∇²φ₁ − ∇²φ₂ over the cell centres of the box (2, d)."""
    require_whole(2, grid=grid)
    t = centres(box, grid)
    gap = fisher_metric(first, t) - fisher_metric(second, t)
    return gap.detach().flatten(1).norm(dim=1).max().item()


@dataclass
class Convergence:
    """Theorem 3.1 in numbers: how far p^{1/N} is from e^{−D} at counts N (k,).

    error: root mean squares over the box, (repeats, k). slope: of log root-mean-square error
    against log N, with its central 95% interval when the repeats are drawn anew with replacement.
    """

    counts: np.ndarray
    error: np.ndarray
    slope: float
    interval: tuple[float, float]


def posterior_convergence(
    potential: Potential,
    statistics: Values,
    t0: Values,
    *,
    box: Values,
    claimed: Potential | None = None,
    grid: int = 64,
    least: int = 1,
) -> Convergence:
    """N-th root of the exact posterior of N samples against e^{−D(t, t₀)}: Theorem 3.1 measured.

    The posterior depends on the samples through the mean f̄ of their statistics alone,

        p(t|x_1..x_N) = exp(N (⟨t, f̄⟩ − φ(t))) / ∫_box exp(N (⟨t', f̄⟩ − φ(t'))) dt',

    a density in the unit box. The evidence below the line is the theorem's one hard step: without
    it, in p(t|x) / p(t₀|x), nothing is left but the error of a mean, and any φ whatever would do.
    It is integrated over eight deviations of the posterior about t₀, as far as the box reaches.
    The error of the mean falls like N^{−1/2}, what the evidence adds like log N / N.

    potential: exact φ = log Z, (n, d) -> (n,). statistics: (repeats, N_max, d), f of independent
    samples drawn at t0 (d,), inside the box (2, d). claimed: the φ that D is made of, by default
    the same. grid: cells per axis. least: smallest N in the fitted slope, of the powers of two up
    to N_max. Raises ValueError on shapes that disagree and fewer than two N.
    Source: Lobashev et al. 2025, Theorem 3.1; the rate is ours.
    """
    require_whole(2, grid=grid)
    statistics = float64(statistics, "statistics")
    t0, box = (part.to(statistics.device) for part in (float64(t0, "t0"), as_box(box)))
    counts = _counts(statistics, t0, box, least)
    t, sums = centres(box, grid), statistics.cumsum(1)
    exact = torch.exp(-bregman(claimed or potential, t, t0[None]))
    spread = torch.linalg.inv(fisher_metric(potential, t0[None])[0]).diagonal().sqrt()

    def error(n: int) -> Tensor:
        def log(t: Tensor) -> Tensor:
            return sums[:, n - 1] @ t.T - n * potential(t)

        near = torch.stack([t0 - 8 * spread / n**0.5, t0 + 8 * spread / n**0.5]).clamp(*box)
        share = ((near[1] - near[0]) / (box[1] - box[0])).log().sum()
        evidence = log(centres(near, grid)).logsumexp(1, keepdim=True) - math.log(len(t)) + share
        return (((log(t) - evidence) / n).exp() - exact).square().mean(1).sqrt()

    errors = torch.stack([error(n) for n in counts.tolist()], 1).numpy(force=True)
    late = np.log(counts[counts >= least])

    def slope(drawn: np.ndarray) -> float:
        height = np.log(np.square(drawn[:, counts >= least]).mean(0)) / 2
        return np.polyfit(late, height, 1)[0]

    found = intervals.bootstrap(errors, statistic=slope, draws=1000)
    return Convergence(counts, errors, found.value, (found.low, found.high))


def _counts(statistics: Tensor, t0: Tensor, box: Tensor, least: int) -> np.ndarray:
    """Powers of two up to the number of samples, the input checked."""
    d = len(t0) if t0.ndim == 1 else None
    if statistics.ndim != 3 or statistics.shape[2] != d or box.shape != (2, d):
        shapes = tuple(statistics.shape), tuple(t0.shape), tuple(box.shape)
        raise ValueError(
            f"statistics, t0, box have shapes {shapes}; expected (repeats, N, d), (d,) and (2, d)"
        )
    if not ((t0 > box[0]) & (t0 < box[1])).all():
        raise ValueError(f"t0={t0.tolist()} is not inside the box {box.tolist()}")
    counts = 2 ** np.arange(statistics.shape[1].bit_length())
    if (counts >= least).sum() < 2:
        raise ValueError(f"least={least} of {statistics.shape[1]} samples; give least <= N_max / 2")
    return counts
