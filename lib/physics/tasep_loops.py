"""Compiled loops of the open TASEP; what they compute is derived in `tasep`.

Every random number is a value of its draw's own stream, so that neither the batch nor the number of
threads matters.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from lib.physics.streams import Words, draw, torch_threads_kept

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Chains = NDArray[np.uint8]


@njit(cache=True)
def _uniform(key: np.uint64, counter: int) -> float:
    """Number `counter` of the stream `key`, in [0, 1) with 53 bits."""
    return np.float64(draw(key, counter + 1) >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def _end_weights(log_a: float, log_b: float, log_paths: Floats) -> tuple[Floats, float]:
    """Weights n_N(q) / n_N(0) * sum_k a^k b^(q-k) / exp(top) of the end height, and top."""
    larger = max(log_a, log_b)
    ratio = np.exp(-abs(log_a - log_b)) if larger > -np.inf else 0.0
    top = 0.0
    for q in range(1, log_paths.size):
        top = max(top, log_paths[q] + q * larger)
    weights = np.empty(log_paths.size)
    weights[0] = np.exp(-top)
    geometric = 1.0
    for q in range(1, log_paths.size):
        geometric = 1.0 + ratio * geometric
        weights[q] = np.exp(log_paths[q] + q * larger - top) * geometric
    return weights, top


@torch_threads_kept
@njit(cache=True, parallel=True)
def moments(
    log_a: Floats, log_b: Floats, log_paths: Floats, log_sum: Floats, moment: Floats
) -> None:
    """Fill in the log of the sum of weights and the mean of (N - q)(N + q + 2)."""
    size = log_paths.size - 1
    for i in prange(log_a.size):
        weights, top = _end_weights(log_a[i], log_b[i], log_paths)
        total = 0.0
        product = 0.0
        for q in range(size + 1):
            total += weights[q]
            product += weights[q] * (size - q) * (size + q + 2.0)
        log_sum[i] = top + np.log(total)
        moment[i] = product / total


@njit(cache=True)
def _index(weights: Floats, uniform: float) -> int:
    """Index drawn with probability proportional to its weight, by inversion."""
    target = uniform * weights.sum()
    for q in range(weights.size):
        target -= weights[q]
        if target < 0.0:
            return q
    return weights.argmax()


@njit(cache=True)
def _entry_share(log_a: float, log_b: float, q: int, uniform: float) -> int:
    """The exponent u of a, drawn from a^u b^(q-u) on 0, ..., q."""
    if q == 0:
        return 0
    log_ratio = -abs(log_a - log_b)
    if log_ratio == 0.0:
        smaller = int(uniform * (q + 1))
    else:
        smaller = int(np.log1p(uniform * np.expm1((q + 1) * log_ratio)) / log_ratio)
    smaller = min(smaller, q)
    return smaller if log_a < log_b else q - smaller


@njit(cache=True)
def _from_below(key: np.uint64, time: int, height: int) -> bool:
    """Whether the last step of a uniform path >= 0 to `height` at `time` was up."""
    came_up = float(height) * (time + height + 2.0)
    return _uniform(key, time) * (2.0 * time * (height + 1.0)) < came_up


@njit(cache=True)
def _ends(key: np.uint64, log_a: float, log_b: float, log_paths: Floats) -> tuple[int, int]:
    """End height q of one path and the exponent u, from two numbers of its own."""
    weights, _ = _end_weights(log_a, log_b, log_paths)
    q = _index(weights, _uniform(key, 0))
    return q, _entry_share(log_a, log_b, q, _uniform(key, 2 * log_paths.size))


@torch_threads_kept
@njit(cache=True, parallel=True)
def hidden(keys: Words, log_a: Floats, log_b: Floats, log_paths: Floats, counts: Counts) -> None:
    """Fill in (u, v = q - u) per row."""
    for i in prange(keys.size):
        q, u = _ends(keys[i], log_a[i], log_b[i], log_paths)
        counts[i, 0], counts[i, 1] = u, q - u


@torch_threads_kept
@njit(cache=True, parallel=True)
def sample(keys: Words, log_a: Floats, log_b: Floats, log_paths: Floats, occupied: Chains) -> None:
    """Fill in one exact configuration per row, each path drawn backwards in time."""
    size = occupied.shape[1]
    for i in prange(keys.size):
        q, lowest = _ends(keys[i], log_a[i], log_b[i], log_paths)
        height = 2 * q + 1
        for site in range(size - 1, -1, -1):
            height += 1 - 2 * _from_below(keys[i], 2 * site + 3, height)
            up = _from_below(keys[i], 2 * site + 2, height)
            height += 1 - 2 * up
            occupied[i, site] = up
            # Back at (height - 1) / 2 for the first time: this was the last exit from that level.
            if height < 2 * lowest:
                lowest -= 1
                occupied[i, site] = 0


@njit(cache=True)
def _heights(tau: Chains, a: float) -> tuple[Floats, float, bool]:
    """Log of the sums over partner rows by the last height, its scale, whether none was lost."""
    w = np.zeros(tau.size + 2)
    w[0] = 1.0
    highest, log_scale, kept = 0, 0.0, a < 1e100
    for site in range(tau.size):
        if tau[site]:
            highest += 1
            for h in range(highest, 0, -1):
                w[h] += w[h - 1]
        else:
            w[0] += a * w[0] + w[1]
            for h in range(1, highest + 1):
                w[h] += w[h + 1]
        top = w[: highest + 1].max()
        if top > 1e200:
            w /= top
            log_scale += np.log(top)
            kept = kept and w[: highest + 1].min() > 1e-290
    return np.log(w[: highest + 1]), log_scale, kept


@njit(cache=True)
def _log_sum(x: float, y: float) -> float:
    """log(e^x + e^y), x or y finite."""
    return max(x, y) + np.log1p(np.exp(-abs(x - y)))


@njit(cache=True)
def _log_heights(tau: Chains, log_a: float) -> Floats:
    """As `_heights`, every sum by its logarithm: slower, and right at any rate."""
    w = np.full(tau.size + 2, -np.inf)
    w[0] = 0.0
    highest = 0
    for site in range(tau.size):
        if tau[site]:
            highest += 1
            for h in range(highest, 0, -1):
                w[h] = _log_sum(w[h], w[h - 1])
        else:
            w[0] = _log_sum(_log_sum(w[0], log_a + w[0]), w[1])
            for h in range(1, highest + 1):
                w[h] = _log_sum(w[h], w[h + 1])
    return w[: highest + 1]


@torch_threads_kept
@njit(cache=True, parallel=True)
def rows(tau: Chains, a: Floats, log_b: Floats, table: Floats) -> None:
    """Fill in the log of the sum over partner rows of a^u b^v."""
    for i in prange(a.size):
        log_w, log_scale, kept = _heights(tau, a[i])
        if not kept:
            log_w, log_scale = _log_heights(tau, np.log(a[i])), 0.0
        for j in range(log_b.size):
            terms = log_w.copy()
            for h in range(1, terms.size):
                terms[h] += h * log_b[j]
            top = terms.max()
            table[i, j] = log_scale + top + np.log(np.exp(terms - top).sum())


@njit(cache=True)
def _scaled_catalan(rate: float, size: int) -> Floats:
    """C_k rate^k for k = 0, ..., N."""
    catalan = np.ones(size + 1)
    for k in range(1, size + 1):
        catalan[k] = catalan[k - 1] * rate * (4.0 * k - 2.0) / (k + 1.0)
    return catalan


@njit(cache=True)
def _one_boundary(beta: float, log_b: float, size: int) -> tuple[Floats, float]:
    """B_k J^k with J = m (1 - m), m = min(beta, 1/2), for k = 0, ..., N; log_b is log B_N."""
    rate = min(beta, 0.5)
    rate *= 1.0 - rate
    catalan = _scaled_catalan(rate, size)
    b = np.empty(size + 1)
    b[size] = np.exp(log_b + size * np.log(rate))
    for k in range(size, 0, -1):
        b[k - 1] = beta * (1.0 - beta) / rate * b[k] + beta * catalan[k - 1]
    return b, rate


@njit(cache=True)
def _sum_less_one(larger: float, smaller: float) -> float:
    """larger + smaller - 1 without loss, whatever was rounded off the sum (Dekker 1971)."""
    total = larger + smaller
    return (total - 1.0) + (smaller - (total - larger))


@njit(cache=True)
def profiles(alpha: Floats, beta: Floats, log_z: Floats, log_b: Floats, profile: Floats) -> None:
    """Fill in <tau_i>, with Z_k J^k in place of Z_k against overflow."""
    size = profile.shape[1]
    for i in range(alpha.size):
        b, own_rate = _one_boundary(beta[i], log_b[i], size)
        slowest = min(alpha[i], beta[i], 0.5)
        rate = slowest * (1.0 - slowest)
        for k in range(size + 1):
            b[k] *= (rate / own_rate) ** k
        inner = alpha[i] * (1.0 - alpha[i])
        excess = alpha[i] * _sum_less_one(max(alpha[i], beta[i]), min(alpha[i], beta[i]))
        z = np.empty(size + 1)
        z[0], z[size] = 1.0, np.exp(log_z[i] + size * np.log(rate))
        if excess < 0.0:
            for k in range(1, size + 1):
                z[k] = (rate * z[k - 1] - excess * b[k]) / inner
        else:
            for k in range(size, 0, -1):
                z[k - 1] = (inner * z[k] + excess * b[k]) / rate
        catalan = _scaled_catalan(rate, size)
        total = 0.0
        for site in range(size - 1, -1, -1):
            hop = z[site] * b[size - 1 - site] / beta[i]
            profile[i, site] = rate * (total + hop) / z[size]
            total += catalan[size - 1 - site] * z[site]
