"""Compiled sweeps of the Ising model: Swendsen-Wang with a ghost spin, and Metropolis.

Spins are one row of size^2 + 1 numbers, the ghost first, then the sites, row by row.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from lib.physics.streams import Words, draw, torch_threads_kept

Spins = NDArray[np.int8]
Sites = NDArray[np.int32]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(cache=True, nogil=True)
def _fair_sign(bits: np.uint64) -> np.int8:
    return np.int8(1) if bits >> np.uint64(63) else np.int8(-1)


@njit(cache=True, nogil=True)
def _root(parent: Sites, site: int) -> int:
    while parent[site] != site:
        parent[site] = parent[parent[site]]
        site = parent[site]
    return site


@njit(cache=True, nogil=True)
def _join(parent: Sites, a: int, b: int) -> int:
    """Merge two roots; the smaller index stays root, so that parents always come first."""
    if a < b:
        parent[b] = a
        return a
    parent[a] = b
    return b


@njit(cache=True, nogil=True)
def _cluster_sweep(
    spins: Spins,
    parent: Sites,
    size: int,
    bond: np.uint64,
    ghost: np.uint64,
    key: np.uint64,
    base: int,
) -> None:
    """One Swendsen-Wang update; spins[0] is the ghost, sites follow from 1, row by row."""
    count = size * size
    parent[0] = 0
    for line in range(size):
        root = -1
        for site in range(line * size + 1, line * size + size + 1):
            left, root = root, site
            parent[site] = site
            bits = draw(key, base + 2 * site)
            spin = spins[site]
            if left >= 0 and spin == spins[site - 1] and bits & LOW < bond:
                root = left
                parent[site] = left
            if line and spin == spins[site - size] and bits >> HALF < bond:
                other = _root(parent, site - size)
                if other != root:
                    root = _join(parent, root, other)
            if ghost and spin == spins[0] and draw(key, base + 2 * site + 1) & LOW < ghost:
                root = _join(parent, root, 0)
    for line in range(size):
        site, other = line * size + 1, line * size + size
        if spins[site] == spins[other] and draw(key, base + 2 * site) & LOW < bond:
            _join(parent, _root(parent, site), _root(parent, other))
        site, other = line + 1, line + 1 + count - size
        if spins[site] == spins[other] and draw(key, base + 2 * site) >> HALF < bond:
            _join(parent, _root(parent, site), _root(parent, other))
    for site in range(1, count + 1):
        above = parent[site]
        # a parent precedes its site, so it already holds the new sign of the cluster
        spins[site] = spins[above] if above < site else _fair_sign(draw(key, base + 2 * site + 1))


@njit(cache=True, nogil=True)
def _metropolis_sweep(spins: Spins, size: int, accept: Words, key: np.uint64, base: int) -> None:
    """One pass over the sites in order; accept[5 (s > 0) + k] for k neighbours up."""
    for line in range(size):
        above = size * (size - 1 if line == 0 else -1)
        below = size * (1 - size if line == size - 1 else 1)
        for site in range(line * size + 1, line * size + size + 1):
            left = spins[site - 1 if site > line * size + 1 else site + size - 1]
            right = spins[site + 1 if site < line * size + size else site - size + 1]
            neighbours = left + right + spins[site + above] + spins[site + below]
            case = (neighbours + 4) // 2 + (5 if spins[site] > 0 else 0)
            if draw(key, base + 2 * site) >> HALF < accept[case]:
                spins[site] = -spins[site]


@njit(cache=True, nogil=True)
def _acceptance(beta: float, field: float) -> Words:
    """Metropolis probabilities as thresholds for 32 random bits."""
    accept = np.empty(10, np.uint64)
    for case in range(10):
        spin, neighbours = 2 * (case // 5) - 1, 2 * (case % 5) - 4
        chance = min(1.0, np.exp(-2 * spin * (beta * neighbours + field)))
        accept[case] = np.uint64(np.round(chance * 2.0**32))
    return accept


@njit(cache=True, nogil=True)
def _bond_sum(spins: Spins, size: int) -> int:
    total = 0
    for site in range(1, size * size + 1):
        left = site - 1 if (site - 1) % size else site + size - 1
        up = site - size if site > size else site + size * (size - 1)
        total += spins[site] * (spins[left] + spins[up])
    return total


@torch_threads_kept
@njit(cache=True, nogil=True, parallel=True)
def run(
    cluster: bool,
    hot: bool,
    sweeps: int,
    beta: Floats,
    field: Floats,
    bond: Words,
    ghost: Words,
    keys: Words,
    out: Spins,
    bonds: Counts,
    totals: Counts,
) -> None:
    """All entries in parallel; sums are written where `bonds` and `totals` have columns."""
    size = out.shape[1]
    count = size * size
    for entry in prange(len(beta)):
        key = keys[entry]
        parent = np.empty(count + 1, np.int32)
        spins = np.empty(count + 1, np.int8)
        spins[0] = 1 if field[entry] > 0 else -1
        for site in range(1, count + 1):
            spins[site] = _fair_sign(draw(key, 2 * site + 1)) if hot else 1
        accept = _acceptance(beta[entry], field[entry])
        for sweep in range(sweeps):
            base = 2 * count * (sweep + 1)
            if cluster:
                _cluster_sweep(spins, parent, size, bond[entry], ghost[entry], key, base)
            else:
                _metropolis_sweep(spins, size, accept, key, base)
            if bonds.shape[1]:
                bonds[entry, sweep] = _bond_sum(spins, size)
                totals[entry, sweep] = spins[1:].sum()
        out[entry] = spins[1:].reshape(size, size)
