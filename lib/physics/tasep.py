"""Open TASEP: exact draws from its stationary state, and its exact answers.

Particles enter at the left of a chain of N sites with rate alpha, hop one site to the right with
rate 1 if it is free, and leave at the right with rate beta. Throughout, a = (1 - alpha) / alpha and
b = (1 - beta) / beta. Rates outside (0, 1], sizes too small and shapes that do not broadcast are a
ValueError.

**Two rows.** With D = 1 + U and E = 1 + U^T, where U raises a height h >= 0 by one, the matrix
product of Derrida, Evans, Hakim and Pasquier (J. Phys. A 26, 1493, 1993) has <W| = (1, a, a^2, ...)
and |V> = (1, b, b^2, ...)^T. Written as a sum over paths (Enaud and Derrida, J. Stat. Phys. 114,
537, 2004), the chain tau gets a partner row xi in {0, 1}^N; summing over the first height leaves

    P(tau, xi) proportional to a^u b^v,    S_i = sum_{j <= i} (tau_j - xi_j),
    u = -min_{0 <= i <= N} S_i,            v = S_N + u,

non-negative and finite at *all* rates: also where alpha + beta <= 1 and the sum over heights
diverges, since both sides, before normalising, are polynomials in a and b.

**One path.** Pitman's transform R_i = S_i - 2 min_{j <= i} S_j makes S a walk R >= 0 that ends at
q = u + v, and turns each first step of S to a new minimum into the last step of R out of a level
below u. It is one to one for every u in 0, ..., q. Hence

    Z_N = sum_q n_N(q) sum_{k=0}^q a^k b^(q-k),    n_N(q) = (q + 1) / (N + 1) C(2N + 2, N - q),

where n_N(q) counts the walks R (the ballot numbers).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlogy

from lib.physics import tasep_loops
from lib.physics.checks import (
    SEEDS,
    Floats,
    check_count,
    check_equal_shapes,
    check_reals,
)
from lib.physics.streams import GOLDEN, mix

PHASES = ("low density", "high density", "maximal current", "coexistence")

SMALLEST = float(np.finfo(np.float64).tiny)  # of a rate, so that its inverse is finite


def sample(alpha: ArrayLike, beta: ArrayLike, size: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw one configuration from the stationary state for each pair of rates, without burn-in.

    The end height q of the path of the module's head is drawn from its N + 1 closed-form weights, u
    from its truncated geometric law, and the path uniformly, backwards in time: as 2N + 1 steps
    +-1 that stay >= 0, a path at height x after M steps came from below with probability
    x (M + x + 2) / (2 M (x + 1)). The odd steps are tau, but for the u last exits, which are
    emptied. O(N) for each configuration; float64 rounding is the only departure from the exact law,
    about 1e-11 in total variation at N = 16,384.

    alpha, beta: entry and exit rates, scalars or one per configuration. size: N >= 1.
    seed: draw i depends on (seed, i), its rates and N alone, not on the batch or the threads.
    Returns occupations in {0, 1}, shape (n, size); n = 1 for scalar rates.
    """
    alpha, beta = _rates(alpha, beta, batch=True)
    size = check_count("size", size, 1)
    occupied = np.empty((alpha.size, size), np.uint8)
    keys = _keys(seed, alpha.size)
    tasep_loops.sample(keys, _log_odds(alpha), _log_odds(beta), _log_paths(size), occupied)
    return occupied


def hidden_counts(
    alpha: ArrayLike, beta: ArrayLike, size: int, *, seed: int = 0
) -> NDArray[np.int64]:
    """Exponents (u, v) of the two rows of the module's head, for the same draws as `sample`.

    In θ = (logit alpha, logit beta) the two rows together are an exponential family at every N,

        p(tau, xi | θ) = exp(-u θ_1 - v θ_2 - log Z_N(θ)),

    with sufficient statistics -(u, v) and log Z_N = `log_partition`. The chain tau alone is none:
    the second row, and with it half of the information, is hidden.
    Arguments as of `sample`. Returns integers >= 0, shape (n, 2).
    """
    alpha, beta = _rates(alpha, beta, batch=True)
    size = check_count("size", size, 1)
    counts = np.empty((alpha.size, 2), np.int64)
    keys = _keys(seed, alpha.size)
    tasep_loops.hidden(keys, _log_odds(alpha), _log_odds(beta), _log_paths(size), counts)
    return counts


def domain_wall(occupied: ArrayLike, scales: ArrayLike = ()) -> Floats:
    """Fall and climb of each chain drawn as a path, one up per particle and one down per hole.

    With S_i = sum_{j <= i} (2 tau_j - 1) the path falls by -min S to its lowest point, where a
    domain wall stands, and climbs by S_N - min S from there to its end: the exponents (u, v) of
    the module's head with the hidden row replaced by its mean, twice over. At maximal current both
    are of order sqrt(N). `scales` adds, for each c, what exceeds c sqrt(N) of either.
    occupied: (n, N) in {0, 1}. Returns (n, 2 + 2 len(scales)).
    """
    occupied = np.asarray(occupied)
    if occupied.ndim != 2 or occupied.size == 0 or not np.isin(occupied, (0, 1)).all():
        raise ValueError(f"occupied has shape {occupied.shape}; give chains of 0 and 1, (n, N)")
    ends = []
    for chain in occupied:
        path = np.cumsum(2 * chain.astype(np.int32) - 1)
        lowest = min(0, path.min())
        ends.append((-lowest, path[-1] - lowest))
    walls = np.array(ends, np.float64)
    knots = np.asarray(scales, np.float64) * occupied.shape[1] ** 0.5
    return np.concatenate([walls, *(np.maximum(walls - knot, 0) for knot in knots)], 1)


def log_probability(occupied: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """Exact log p(tau | alpha_i, beta_j) of one configuration on a grid of rates, (n_a, n_b).

    The sum over partner rows of the module's head, run along the chain: with h >= 0 the height of S
    above its running minimum, a particle takes w_h to w_h and w_{h+1}, a hole to w_h and w_{h-1},
    or to a w_0 where the minimum falls, and the last h weighs b^h. Every term is positive. O(N^2)
    for each alpha. Up to a constant it is the exact posterior of the rates, the prior uniform.
    occupied: (N,) in {0, 1}. alpha: (n_a,). beta: (n_b,).
    """
    tau = check_reals("occupied", occupied, "zeros and ones")
    if tau.ndim != 1 or tau.size == 0 or not np.isin(tau, (0, 1)).all():
        raise ValueError(
            f"occupied has shape {tau.shape}; allowed is one chain (N,) of zeros and ones"
        )
    alpha, beta = _rates(alpha, 1.0, batch=True)[0], _rates(1.0, beta, batch=True)[1]
    table = np.empty((alpha.size, beta.size))
    tasep_loops.rows(tau.astype(np.uint8), np.exp(_log_odds(alpha)), _log_odds(beta), table)
    return table - log_partition(alpha[:, None], beta[None], tau.size)


def log_partition(alpha: ArrayLike, beta: ArrayLike, size: int) -> Floats:
    """Exact log Z_N of the matrix product <W|(D + E)^N|V>, with Z_0 = 1 and Z_1 = 1/alpha + 1/beta.

    The sum over q of the module's head in the log domain: every term is positive, so nothing
    cancels at or near alpha = beta or alpha + beta = 1. The shape of the rates.
    """
    alpha, beta = _rates(alpha, beta)
    size = check_count("size", size, 0)
    return _end_moments(alpha, beta, size)[0] + _log_catalan(size + 1)


def current(alpha: ArrayLike, beta: ArrayLike, size: int | None = None) -> Floats:
    """Exact stationary current J_N = Z_{N-1} / Z_N, in particles per unit of time.

    Since n_{N-1}(q) / n_N(q) is rational, J_N = <(N - q)(N + q + 2)> / (2N (2N + 1)), a mean over
    the end height q. With `size=None` the infinite chain: m (1 - m), m = min(alpha, beta, 1/2).
    """
    alpha, beta = _rates(alpha, beta)
    if size is None:
        slowest = np.minimum(np.minimum(alpha, beta), 0.5)
        return slowest * (1 - slowest)
    size = check_count("size", size, 1)
    return _end_moments(alpha, beta, size)[1] / (2 * size * (2 * size + 1))


def current_gradient(alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """Gradient (dJ/dalpha, dJ/dbeta) of the infinite chain's current, shape (..., 2).

    (1 - 2 alpha, 0) at low density, (0, 1 - 2 beta) at high density, 0 at maximal current. On the
    coexistence line, where J has a kink, the mean of its two sides.
    """
    alpha, beta = _rates(alpha, beta)
    entry, exit_ = _limiting(alpha, beta)
    return np.stack([entry * (1 - 2 * alpha), exit_ * (1 - 2 * beta)], axis=-1)


def phase(alpha: ArrayLike, beta: ArrayLike) -> NDArray[np.str_]:
    """Name the phase of the infinite chain, one of `PHASES`.

    "low density" for alpha < beta and alpha < 1/2, "high density" for beta < alpha and beta < 1/2,
    "maximal current" for alpha, beta >= 1/2, and "coexistence" for alpha = beta < 1/2.
    """
    alpha, beta = _rates(alpha, beta)
    low = (alpha < beta) & (alpha < 0.5)
    high = (beta < alpha) & (beta < 0.5)
    maximal = (alpha >= 0.5) & (beta >= 0.5)
    return np.select([low, high, maximal], PHASES[:3], PHASES[3])


def density_profile(alpha: ArrayLike, beta: ArrayLike, size: int) -> Floats:
    """Exact mean occupation <tau_i> of every site, shape (..., size).

    With the Catalan numbers C_p and B_k the coefficients of beta / (beta - x), x (1 - x) = t,

        <tau_i> Z_N = sum_{p=0}^{N-i-1} C_p Z_{N-1-p} + Z_{i-1} B_{N-i} / beta

    (Derrida et al. 1993, their sum over powers of 1 / beta being B_{N-i} / beta). From
    sum_k Z_k t^k = alpha beta / ((alpha - x)(beta - x)) follow B_{k-1} = beta (1 - beta) B_k +
    beta C_{k-1} and alpha (1 - alpha) Z_k = Z_{k-1} + alpha (1 - alpha - beta) B_k, each run in
    the direction in which all its terms are positive; O(N) for each pair of rates.
    """
    alpha, beta = _rates(alpha, beta)
    size = check_count("size", size, 1)
    log_z = log_partition(alpha, beta, size)
    log_b = log_partition(1.0, beta, size - 1) - np.log(beta)
    profile = np.empty((alpha.size, size))
    tasep_loops.profiles(*(np.ravel(x) for x in (alpha, beta, log_z, log_b)), profile)
    return profile.reshape(*alpha.shape, size)


def fisher_metric(alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """Fisher metric per site of the infinite chain in (alpha, beta), shape (..., 2, 2).

    diag(1 / (alpha (1 - alpha)), 0) at low density, diag(0, 1 / (beta (1 - beta))) at high density
    and 0 at maximal current: away from the ends any few sites are independent with density alpha,
    1 - beta or 1/2. Rank one at most. On the coexistence line, where the place of the wall makes
    the true value per site grow with the size, by convention the mean of the two sides.
    """
    alpha, beta = _rates(alpha, beta)
    metric = np.zeros((*alpha.shape, 2, 2))
    for axis, (rate, weight) in enumerate(zip((alpha, beta), _limiting(alpha, beta), strict=True)):
        inside = weight > 0
        metric[inside, axis, axis] = weight[inside] / (rate[inside] * (1 - rate[inside]))
    return metric


def potentials(alpha: ArrayLike, beta: ArrayLike) -> dict[str, Floats]:
    """Three convex potentials per site with the same kinks, m = min(alpha, beta, 1/2).

    "current": -J = -m (1 - m); "log_current": -log J, the limit of log Z_N / N; "fisher":
    m log m + (1 - m) log(1 - m), whose Hessian in (alpha, beta) is `fisher_metric`.
    """
    alpha, beta = _rates(alpha, beta)
    m = np.minimum(np.minimum(alpha, beta), 0.5)
    return {
        "current": -m * (1 - m),
        "log_current": -np.log(m) - np.log1p(-m),
        "fisher": xlogy(m, m) + xlogy(1 - m, 1 - m),
    }


def _limiting(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """Share of the entry and of the exit in limiting the current: 0, 1, or 1/2 at coexistence."""
    names = phase(alpha, beta)
    shared = 0.5 * (names == PHASES[3])
    return (names == PHASES[0]) + shared, (names == PHASES[1]) + shared


def _rates(alpha: ArrayLike, beta: ArrayLike, *, batch: bool = False) -> tuple[Floats, Floats]:
    """Both rates as float64 arrays of one shape, one-dimensional for a batch."""
    allowed = f"a rate in (0, 1], at least {SMALLEST}"
    rates = [
        check_reals(name, rate, allowed, SMALLEST, 1.0)
        for name, rate in (("alpha", alpha), ("beta", beta))
    ]
    shape = max((rate.shape for rate in rates), key=len)
    if batch and len(shape) > 1:
        raise ValueError(f"alpha and beta have shape {shape}; allowed is a number or (n,)")
    alpha, beta = (np.array(rate) for rate in check_equal_shapes(*rates, "alpha and beta"))
    return (np.atleast_1d(alpha), np.atleast_1d(beta)) if batch else (alpha, beta)


def _log_odds(rate: Floats) -> Floats:
    """Log of a = (1 - rate) / rate, minus infinity at rate 1."""
    with np.errstate(divide="ignore"):
        return np.log1p(-rate) - np.log(rate)


def _log_catalan(n: int) -> float:
    """Log of the Catalan number C_n."""
    return gammaln(2 * n + 1) - gammaln(n + 1) - gammaln(n + 2)


def _log_paths(size: int) -> Floats:
    """Log of n_N(q) / n_N(0) for q = 0, ..., N, summed from the exact ratios of neighbours."""
    q = np.arange(1, size + 1)
    steps = np.log((q + 1) * (size - q + 1) / (q * (size + q + 2.0)))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _end_moments(alpha: Floats, beta: Floats, size: int) -> tuple[Floats, Floats]:
    """log(Z_N / n_N(0)) and <(N - q)(N + q + 2)>, each in the shape of the rates."""
    log_sum, moment = np.empty(alpha.size), np.empty(alpha.size)
    log_a, log_b = _log_odds(alpha).ravel(), _log_odds(beta).ravel()
    tasep_loops.moments(log_a, log_b, _log_paths(size), log_sum, moment)
    return log_sum.reshape(alpha.shape), moment.reshape(alpha.shape)


def _keys(seed: int, n: int) -> NDArray[np.uint64]:
    """One generator key per draw, hashed from (seed, index)."""
    seed = check_count("seed", seed, 0, SEEDS)
    base = mix(np.array([seed], dtype=np.uint64) + GOLDEN)
    return mix(np.arange(n, dtype=np.uint64) + base + GOLDEN)
