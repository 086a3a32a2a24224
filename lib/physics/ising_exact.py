"""Exact answers for the square-lattice Ising model on tori and cylinders, by transfer matrices.

Weight exp(beta sum s s' + field sum s): `beta` = 1/T and `field` = H/T are dimensionless, the
lattice is periodic, every bond counts once.
"""

from collections.abc import Callable
from functools import lru_cache
from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lib.physics.checks import Floats, Integers, check_count, check_equal_shapes, check_reals

CRITICAL_BETA = float(np.log1p(np.sqrt(2.0)) / 2)
LARGEST_TRANSFER = 12
LARGEST = 1e100  # of beta and field, so that no energy overflows


def check_parameters(beta: ArrayLike, field: ArrayLike = 0.0) -> tuple[Floats, Floats]:
    """Return beta and field as float64 arrays of one shape; ValueError for what is not allowed."""
    beta = check_reals("beta", beta, "0 <= beta <= 1e100 (beta = 1/T)", 0.0, LARGEST)
    field = check_reals("field", field, "|field| <= 1e100 (field = H/T)", -LARGEST, LARGEST)
    return check_equal_shapes(beta, field, "beta and field")


def log_partition(beta: ArrayLike, field: ArrayLike, size: int) -> Floats:
    """Exact log Z of the size x size torus, by the transfer matrix in momentum sectors.

    Z = Tr T^size = sum_k Tr T_k^size, with T(a, b) = exp((V(a) + V(b))/2 + beta sum_i a_i b_i) and
    V(a) = sum_i (beta a_i a_{i+1} + field a_i). T commutes with translations of the ring, so it is
    a block T_k for each momentum k, and the blocks of k and -k have equal traces.

    beta >= 0 and field broadcast, size 3 to 12; ValueError for anything else.
    Source: Kramers and Wannier, Phys. Rev. 60, 252 (1941).
    """
    beta, field = check_parameters(beta, field)
    size = check_count("size", size, 3, LARGEST_TRANSFER)
    pairs = zip(beta.ravel(), field.ravel(), strict=True)
    values = [_log_z(_trace_series(b, h, size, ORDERS[:1]), b, h, size) for b, h in pairs]
    return np.reshape(values, beta.shape)[()]


def cylinder_free_energy(beta: ArrayLike, field: ArrayLike, width: int) -> Floats:
    """-log Z / N of the infinitely long cylinder: -log(largest transfer eigenvalue) / width.

    The leading eigenvector is positive, hence unchanged by translations and reflections of the
    ring; the eigenvalue is computed among such vectors (224 of them at width 12). F is T times it.
    Arguments, errors and source as of `log_partition`, width for size.
    """
    beta, field = check_parameters(beta, field)
    width = check_count("width", width, 3, LARGEST_TRANSFER)
    flat, starts = np.stack([beta.ravel(), field.ravel()]), range(0, max(beta.size, 1), 16)
    values = np.concatenate([_log_top(*flat[:, k : k + 16], width) for k in starts])
    return -values.reshape(beta.shape)[()] / width


def cylinder_cumulants(
    beta: ArrayLike, field: ArrayLike, width: int
) -> tuple[Floats, Floats, Floats]:
    """log Z / N of the infinite cylinder with its first and second derivatives in (beta, field).

    Of the largest eigenvalue λ of T with unit vector v: λ_a = vᵀT_a v and
    λ_ab = vᵀT_ab v + 2 Σ_k (vᵀT_a v_k)(v_kᵀT_b v) / (λ − λ_k), exact, no differences.

    Returns values (...), means per site (..., 2), Fisher metric per site (..., 2, 2). Raises
    ValueError as `log_partition`, and where λ and the next eigenvalue agree to 12 digits, as
    without field deep in the ordered phase, where the metric diverges.
    """
    beta, field = check_parameters(beta, field)
    width = check_count("width", width, 3, LARGEST_TRANSFER)
    flat = np.stack([beta.ravel(), field.ravel()])
    starts = range(0, max(flat.shape[1], 1), 16)
    parts = [_top_cumulants(*flat[:, k : k + 16], width) for k in starts]
    value, mean, square = (np.concatenate(part) / width for part in zip(*parts, strict=True))
    return (
        value.reshape(beta.shape),
        mean.reshape(*beta.shape, 2),
        square.reshape(*beta.shape, 2, 2),
    )


def torus_cumulants(beta: ArrayLike, field: ArrayLike, size: int) -> tuple[Floats, Floats, Floats]:
    """`cylinder_cumulants` of the size x size torus, size 3 to 12; seconds a point at size 12.

    The derivatives are carried along the powers of the transfer matrix: no differences.
    """
    beta, field = check_parameters(beta, field)
    size = check_count("size", size, 3, LARGEST_TRANSFER)
    pairs = zip(beta.ravel(), field.ravel(), strict=True)
    rows = np.array([_torus_cumulants(b, h, size) for b, h in pairs]).reshape(*beta.shape, 6)
    value, mean, square = np.split(rows / size**2, [1, 3], axis=-1)
    return value[..., 0], mean, square[..., [0, 1, 1, 2]].reshape(*beta.shape, 2, 2)


def levels(size: int = 4) -> tuple[Integers, Integers]:
    """Distinct (sum s s', sum s) of the size x size torus, and how many states share each.

    log Z(beta, field) = log Σ_k count_k exp(beta E_k + field M_k), by enumeration.
    size: 3 or 4, else ValueError. Returns int64 (k, 2) and (k,).
    """
    sites = check_count("size", size, 3, 4) ** 2
    spins = 1 - 2 * ((np.arange(2**sites)[:, None] >> np.arange(sites)) & 1)
    lattices = spins.reshape(-1, size, size)
    bonds = (lattices * (np.roll(lattices, 1, 1) + np.roll(lattices, 1, 2))).sum((1, 2))
    return np.unique(np.stack([bonds, spins.sum(1)], 1), axis=0, return_counts=True)


def zero_field_curvature(beta: ArrayLike, size: int) -> Floats:
    """Scalar curvature of the Fisher metric per site at zero field, exact torus, shape of beta.

    With ψ = log Z / N even in h, the Hessian metric in (β, h) has, at h = 0,

        R = ψ_βhh (ψ_ββ ψ_βhh − ψ_hh ψ_βββ) / (2 ψ_ββ² ψ_hh²),

    in the convention R = +2 on the unit sphere. Derivatives are carried along the powers of the
    transfer matrix, the energy counted from the ground state: nine digits from infinite temperature
    down to the limit 2 (N − 1) / N at zero. Near the critical point |R| grows like the correlation
    volume ξ², so its maximum like size². Errors as `log_partition`.
    Source: Ruppeiner, Rev. Mod. Phys. 67, 605 (1995).
    """
    beta, _ = check_parameters(beta)
    size = check_count("size", size, 3, LARGEST_TRANSFER)
    # from 20 on the next terms are exp(-4 beta) < 2e-35 of the limit, and smaller ones underflow
    flat = np.minimum(beta, 20.0).ravel()
    curvature = np.array([_curvature(_trace_series(b, 0.0, size, ORDERS), size**2) for b in flat])
    return curvature.reshape(beta.shape)[()]


@lru_cache
def _orbits(width: int, reflect: bool) -> tuple[Integers, Integers, Floats]:
    """Symmetry classes of ring states: (orders, distance, weight).

    Ring bonds and magnetisation of the representatives (r, 2), Hamming distances to all images of
    them (r, r, g), sqrt(|A| |B|)/g.
    """
    states = np.arange(2**width)
    spins = 1 - 2 * ((states[:, None] >> np.arange(width)) & 1)
    images = [np.roll(spins, r, axis=1) for r in range(width)]
    images += [image[:, ::-1] for image in images] if reflect else []
    codes = np.stack([((1 - image) // 2) @ (1 << np.arange(width)) for image in images], axis=1)
    chosen = np.flatnonzero(codes.min(axis=1) == states)
    sizes = np.array([np.unique(row).size for row in codes[chosen]])
    folded = np.stack(images, axis=1)[chosen]
    ring = spins[chosen]
    overlap = np.tensordot(ring, folded, axes=([1], [2]))
    orders = np.stack([(ring * np.roll(ring, 1, axis=1)).sum(1), ring.sum(1)], axis=1)
    weight = np.sqrt(np.outer(sizes, sizes)) / len(images)
    return orders, (width - overlap) // 2, weight


@lru_cache
def _distance_counts(width: int) -> Floats:
    """Normalised number of images at each distance, (r * r, width + 1), for invariant vectors."""
    _, distance, weight = _orbits(width, True)
    counts = np.stack([(distance == d).sum(-1) for d in range(width + 1)], axis=-1)
    return (counts * weight[..., None]).reshape(-1, width + 1)


def _row_weights(
    orders: Integers, beta: Floats, field: Floats, width: int
) -> tuple[Floats, Floats, Floats]:
    """exp(V/2) of the representatives and exp(-2 beta d), scaled to at most 1; log of the scale."""
    row = beta[:, None] * orders[:, 0] + field[:, None] * orders[:, 1]
    top = row.max(axis=1)
    between = np.exp(-2 * beta[:, None] * np.arange(width + 1))
    return np.exp((row - top[:, None]) / 2), between, top + beta * width


def _log_top(beta: Floats, field: Floats, width: int) -> Floats:
    """Log of the largest eigenvalue of the transfer matrix."""
    orders, _, _ = _orbits(width, True)
    row, between, scale = _row_weights(orders, beta, field, width)
    matrix = (between @ _distance_counts(width).T).reshape(-1, row.shape[1], row.shape[1])
    top = np.linalg.eigvalsh(matrix * row[:, :, None] * row[:, None, :])[:, -1]
    return np.log(top) + scale


def _top_cumulants(beta: Floats, field: Floats, width: int) -> tuple[Floats, Floats, Floats]:
    """Log of the largest eigenvalue, its gradient and its Hessian in (beta, field)."""
    orders, _, _ = _orbits(width, True)
    row, between, scale = _row_weights(orders, beta, field, width)
    outer, count = row[:, :, None] * row[:, None, :], row.shape[1]
    bonds, spins = ((orders[:, None, k] + orders[None, :, k]) / 2 for k in (0, 1))
    step = width - 2.0 * np.arange(width + 1)
    b0, b1, b2 = (
        outer * (between * step**k @ _distance_counts(width).T).reshape(-1, count, count)
        for k in range(3)
    )
    first = [b1 + bonds * b0, spins * b0]
    second = [[b2 + 2 * bonds * b1 + bonds**2 * b0, spins * first[0]], [None, spins**2 * b0]]
    second[1][0] = second[0][1]
    values, vectors = np.linalg.eigh(b0)
    top, v = values[:, -1], vectors[:, :, -1:]
    pushed = [(vectors.swapaxes(1, 2) @ (m @ v))[:, :, 0] for m in first]
    slope = np.stack([p[:, -1] for p in pushed], -1) / top[:, None]
    gap = top[:, None] - values[:, :-1]
    bad = np.flatnonzero(gap[:, -1] < 1e-12 * top)
    if bad.size:
        raise ValueError(
            f"at beta = {beta[bad[0]]}, field = {field[bad[0]]} the two largest eigenvalues agree "
            "to 12 digits and the metric is lost; give a stronger field, a smaller beta or width"
        )
    hessian = np.empty((len(top), 2, 2))
    for a, b in np.ndindex(2, 2):
        own = (v * (second[a][b] @ v)).sum((1, 2))
        mixed = (pushed[a][:, :-1] * pushed[b][:, :-1] / gap).sum(1)
        hessian[:, a, b] = (own + 2 * mixed) / top - slope[:, a] * slope[:, b]
    return np.log(top) + scale, slope, hessian


# (powers of the change in beta, in the field) that the metric and the curvature need
ORDERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (1, 2))
METRIC = ORDERS[:6]
Orders = tuple[tuple[int, int], ...]
Series = dict[tuple[int, int], NDArray]


def _series_product(
    one: Series, other: Series, multiply: Callable[[NDArray, NDArray], NDArray]
) -> Series:
    """Product of two power series, truncated alike."""
    result = {}
    for a, b in one:
        pairs = ((p, (a - p[0], b - p[1])) for p in one)
        result[a, b] = sum(multiply(one[p], other[q]) for p, q in pairs if q in other)
    return result


def _series_power(series: Series, exponent: int) -> Series:
    """Power of a series of matrices."""
    if exponent == 1:
        return series
    half = _series_power(series, exponent // 2)
    square = _series_product(half, half, np.matmul)
    return _series_product(square, series, np.matmul) if exponent % 2 else square


def _trace_series(beta: float, field: float, size: int, orders: Orders) -> Series:
    """Series of Z exp(-N (2 beta + |field|)) about (beta, field).

    Sums of (-2 u)^j M^k / (j! k!), u broken bonds, M the magnetisation: all terms of a sum over u
    have one sign, so nothing is lost at low temperature.
    """
    states, distance, weight = _orbits(size, False)
    row, spins = ((x[:, None] + x) / 2 for x in ((size - states[:, 0]) / 2, states[:, 1]))
    broken, total = row[..., None] + distance, dict.fromkeys(orders, 0.0)
    weight = weight * np.exp(field * spins - abs(field) * size)
    between = np.exp(-2 * beta * broken) * weight[..., None]
    powers = [between * (-2 * broken) ** j / factorial(j) for j in range(1 + max(orders)[0])]
    blocks = [np.fft.rfft(x, axis=-1) for x in powers]
    for k in range(size // 2 + 1):
        own_mirror = 2 * k % size == 0
        parts = [(x[..., k].real if own_mirror else x[..., k]).copy() for x in blocks]
        block = {(a, b): parts[a] * spins**b / factorial(b) for a, b in orders}
        half = _series_power(block, size // 2)
        rest = _series_product(half, block, np.matmul) if size % 2 else half
        trace = _series_product(half, rest, lambda x, y: (x * y.conj()).real.sum())
        total = {o: total[o] + (1 if own_mirror else 2) * trace[o] for o in orders}
    return total


def _log_z(series: Series, beta: float, field: float, size: int) -> float:
    return np.log(series[0, 0]) + size**2 * (2 * beta + abs(field))


def _torus_cumulants(beta: float, field: float, size: int) -> list[float]:
    """log Z, its slopes in beta and field, and its Hessian ββ, βh, hh."""
    z = _trace_series(beta, field, size, METRIC)
    b, h, bb, bh, hh = (z[order] / z[0, 0] for order in METRIC[1:])
    mean, hessian = [2 * size**2 + b, h], [2 * bb - b * b, bh - b * h, 2 * hh - h * h]
    return [_log_z(z, beta, field, size), *mean, *hessian]


def _curvature(series: Series, sites: int) -> float:
    """R of `zero_field_curvature` from the series of Z."""
    mean, square, cube, m2, m2_mean = (
        series[o] * factor / series[0, 0]
        for o, factor in (((1, 0), 1), ((2, 0), 2), ((3, 0), 6), ((0, 2), 2), ((1, 2), 2))
    )
    b2, b3 = square - mean**2, cube - 3 * square * mean + 2 * mean**3
    hh, bhh = m2 / sites, m2_mean - m2 * mean
    return bhh / b2 * (bhh / sites - hh * b3 / b2) / (2 * hh**2)
