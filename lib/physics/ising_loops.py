"""Compiled sweeps of the Ising model: Swendsen-Wang with a ghost spin, and Metropolis.

Spins are one row of size^2 + 1 numbers, the ghost first, then the sites, row by row.

A wrongly predicted branch costs more than all other work on a site, and half of all bonds are open
at the critical point. So the coins of a sweep are tossed at once, the rows are labelled with masks
in place of branches, and only where a run of bonded sites meets a second cluster (one site in
fourteen at the critical point) are two trees of labels merged.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from lib.physics.streams import Words, draw, torch_threads_kept

Spins = NDArray[np.int8]
Sites = NDArray[np.int32]
Coins = NDArray[np.uint8]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
LEFT, UP, SIGN, GHOST = range(4)  # the bits of a site: bonds to both, its sign, bond to the ghost


@njit(cache=True, nogil=True)
def _fair_sign(bits: np.uint64) -> np.int8:
    return np.int8(1) if bits >> np.uint64(63) else np.int8(-1)


@njit(cache=True, nogil=True)
def _toss(coins: Coins, bond: np.uint64, ghost: np.uint64, key: np.uint64, base: int) -> None:
    """Coins of all sites, before it is known which spins are equal."""
    for site in range(1, coins.size):
        bits, more = draw(key, base + 2 * site), draw(key, base + 2 * site + 1)
        neighbours = np.uint8(bits & LOW < bond) << LEFT | np.uint8(bits >> HALF < bond) << UP
        own = np.uint8(more >> np.uint64(63)) << SIGN | np.uint8(more & LOW < ghost) << GHOST
        coins[site] = neighbours | own


@njit(cache=True, nogil=True)
def _open(spins: Spins, coins: Coins, bonds: Coins, size: int) -> None:
    """Coins of bonds between equal spins; those around the torus are left to `_around`."""
    ghost = spins[0]
    for site in range(1, bonds.size):
        left = np.uint8(spins[site] == spins[site - 1]) << LEFT
        bonds[site] = coins[site] & (left | np.uint8(spins[site] == ghost) << GHOST)
    here, above, coin, bond = (
        spins[size + 1 :],
        spins[1:-size],
        coins[size + 1 :],
        bonds[size + 1 :],
    )
    for site in range(bond.size):
        bond[site] |= coin[site] & np.uint8(here[site] == above[site]) << UP


@njit(cache=True, nogil=True)
def _merge(parent: Sites, a: int, b: int) -> None:
    """Join two trees, the smaller index above (Rem's algorithm: Dijkstra 1976, chapter 23)."""
    while parent[a] != parent[b]:
        if parent[a] < parent[b]:
            a, b = b, a
        above = parent[a]
        parent[a] = parent[b]
        if above == a:
            return
        a = above


@njit(cache=True, nogil=True)
def _merge_all(parent: Sites, pairs: Sites, count: int) -> None:
    for k in range(count):
        _merge(parent, pairs[0, k], pairs[1, k])


@njit(cache=True, nogil=True)
def _label(parent: Sites, pairs: Sites, bonds: Coins, first: int, size: int) -> int:
    """Labels of one row from those of the row above, and the number of pairs yet to be merged.

    A run of sites bonded to their left takes the label of the first cluster above that it meets;
    each further one is a pair. Masks of all bits choose between two values.
    """
    count, label = 0, first
    for site in range(first, first + size):
        bond = np.int64(bonds[site])
        left, up = -(bond >> LEFT & 1), -(bond >> UP & 1)
        label = (label & left) | (site & ~left)
        met = (np.int64(parent[max(site - size, 0)]) & up) | (label & ~up)
        new = -np.int64(label >= first)
        pairs[0, count], pairs[1, count] = label, met
        count += np.int64(met != label) & ~new
        lower = min(label, met)
        parent[(label & new) | (site & ~new)] = lower
        label = (lower & new) | (label & ~new)
        parent[site] = label
    return count


@njit(cache=True, nogil=True)
def _touched(pairs: Sites, bonds: Coins, first: int, size: int) -> int:
    """Pairs of the ghost and the sites of one row that are bonded to it."""
    count = 0
    for site in range(first, first + size):
        pairs[0, count], pairs[1, count] = 0, site
        count += bonds[site] >> GHOST & 1
    return count


@njit(cache=True, nogil=True)
def _around(spins: Spins, pairs: Sites, coins: Coins, size: int, step: int, coin: int) -> int:
    """Pairs bonded around the torus: LEFT from column to column, UP from row to row."""
    count, across = 0, (size - 1) * (1 if coin == LEFT else size)
    for line in range(size):
        site = 1 + line * step
        pairs[0, count], pairs[1, count] = site, site + across
        count += (spins[site] == spins[site + across]) & (coins[site] >> coin & 1)
    return count


@njit(cache=True, nogil=True)
def _cluster_sweep(
    spins: Spins,
    work: tuple,
    size: int,
    bond: np.uint64,
    ghost: np.uint64,
    key: np.uint64,
    base: int,
) -> None:
    """One Swendsen-Wang update; spins[0] is the ghost, sites follow from 1, row by row."""
    parent, pairs, coins, bonds = work
    _toss(coins, bond, ghost, key, base)
    _open(spins, coins, bonds, size)
    parent[0] = 0
    for first in range(1, coins.size, size):
        _merge_all(parent, pairs, _label(parent, pairs, bonds, first, size))
        if ghost:
            _merge_all(parent, pairs, _touched(pairs, bonds, first, size))
        for site in range(first, first + size):
            parent[site] = parent[parent[site]]
    _merge_all(parent, pairs, _around(spins, pairs, coins, size, size, LEFT))
    _merge_all(parent, pairs, _around(spins, pairs, coins, size, 1, UP))
    for site in range(1, coins.size):
        spins[site] = np.int8(coins[site] >> SIGN & 1) * 2 - 1
    for site in range(1, coins.size):
        # a parent precedes its site, so it already holds the new sign of the cluster
        spins[site] = spins[parent[site]]


@njit(cache=True, nogil=True)
def _metropolis_sweep(
    spins: Spins, chances: Words, accept: Words, key: np.uint64, base: int
) -> None:
    """One pass over the sites in order; accept[5 (s > 0) + k] for k neighbours up."""
    size = chances.size
    for first in range(1, spins.size, size):
        for k in range(size):
            chances[k] = draw(key, base + 2 * (first + k)) >> HALF
        above = first - size if first > 1 else spins.size - size
        below = first + size if first + size < spins.size else 1
        left = np.int64(spins[first + size - 1])
        for k in range(size):
            right = spins[first + (k + 1 if k < size - 1 else 0)]
            spin = np.int64(spins[first + k])
            case = ((left + right + spins[above + k] + spins[below + k] + 4) >> 1) + 5 * (spin > 0)
            left = spin * (1 - 2 * np.int64(chances[k] < accept[case]))
            spins[first + k] = left


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
        spins = np.empty(count + 1, np.int8)
        work = (
            np.zeros(count + 1, np.int32),
            np.empty((2, size + 1), np.int32),
            np.empty(count + 1, np.uint8),
            np.empty(count + 1, np.uint8),
        )
        spins[0] = 1 if field[entry] > 0 else -1
        for site in range(1, count + 1):
            spins[site] = _fair_sign(draw(key, 2 * site + 1)) if hot else 1
        accept = _acceptance(beta[entry], field[entry])
        chances = np.empty(size, np.uint64)
        for sweep in range(sweeps):
            base = 2 * count * (sweep + 1)
            if cluster:
                _cluster_sweep(spins, work, size, bond[entry], ghost[entry], key, base)
            else:
                _metropolis_sweep(spins, chances, accept, key, base)
            if bonds.shape[1]:
                bonds[entry, sweep] = _bond_sum(spins, size)
                totals[entry, sweep] = spins[1:].sum()
        out[entry] = spins[1:].reshape(size, size)
