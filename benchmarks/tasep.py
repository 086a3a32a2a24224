"""TASEP: time and memory of exact draws, the simulation they replace, and one fit by swaps."""

import subprocess
import sys
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from lib.geometry import boxes, swaps
from lib.physics import tasep
from lib.physics.streams import GOLDEN, Words, draw, mix, torch_threads_kept

SIZE = 16_384
# Maximal current, coexistence, the corner, low density, alpha + beta < 1, the triple point.
PAIRS = [(0.8, 0.9), (0.3, 0.3), (1.0, 1.0), (0.05, 0.9), (0.1, 0.05), (0.5, 0.5), (1e-6, 1e-6)]

PEAK_MEMORY = """
import resource, sys
import numpy as np
from lib.physics import tasep
tasep.sample(np.full(1000, 0.8), 0.9, {size})
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def _seconds(function: Callable[[], object], repeats: int) -> float:
    """Shortest time of several calls, the first of which only compiles."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _row(claim: str, measured: float, unit: str, target: str, holds: bool) -> dict:
    return {
        "claim": claim,
        "measured": float(measured),
        "unit": unit,
        "target": target,
        "holds": bool(holds),
    }


def simulate(
    alpha: ArrayLike, beta: ArrayLike, size: int, sweeps: int, *, seed: int = 0
) -> NDArray[np.uint8]:
    """Run plain random-sequential dynamics from a random start, the baseline for `tasep.sample`.

    One sweep is N + 1 updates, one unit of time: each picks one of the N + 1 bonds and moves the
    particle across it if it can, with probability alpha at the entry and beta at the exit. The
    start has each site occupied with probability 1/2. How many sweeps equilibrium takes is for the
    caller to judge: about N^1.5 / 3.58 for each factor e in the maximal-current phase (de Gier and
    Essler, Phys. Rev. Lett. 95, 240601, 2005), of order N^2 on the coexistence line.

    Returns occupations, shape (n, size), one independent run per pair of rates.
    """
    alpha, beta = (
        np.array(x, float) for x in np.broadcast_arrays(*map(np.atleast_1d, (alpha, beta)))
    )
    occupied = np.empty((alpha.size, size), np.uint8)
    key = mix(np.array([seed], np.uint64) + GOLDEN)
    _run(mix(np.arange(alpha.size, dtype=np.uint64) + key + GOLDEN), alpha, beta, sweeps, occupied)
    return occupied


@torch_threads_kept
@njit(cache=True, parallel=True)
def _run(keys: Words, alpha: NDArray, beta: NDArray, sweeps: int, occupied: NDArray) -> None:
    """Fill in one random-sequential run per row."""
    size = occupied.shape[1]
    for i in prange(keys.size):
        tau = occupied[i]
        for site in range(size):
            tau[site] = _uniform(keys[i], site) < 0.5
        for update in range(sweeps * (size + 1)):
            # One draw picks the bond and, by its fraction, decides whether a border acts.
            chance = _uniform(keys[i], size + update) * (size + 1)
            bond = int(chance)
            chance -= bond
            if bond == 0:
                tau[0] |= chance < alpha[i]
            elif bond == size:
                tau[size - 1] &= chance >= beta[i]
            elif tau[bond - 1] > tau[bond]:
                tau[bond - 1], tau[bond] = 0, 1


@njit(cache=True)
def _uniform(key: np.uint64, counter: int) -> float:
    """Number `counter` of the stream `key`, in [0, 1)."""
    return np.float64(draw(key, counter + 1) >> np.uint64(11)) * 2.0**-53


def _one_configuration() -> float:
    """Slowest pair of rates, on one thread."""
    return max(_seconds(lambda p=pair: tasep.sample(*p, SIZE), repeats=10) for pair in PAIRS)


def _peak_memory() -> int:
    """Peak resident memory in bytes of a fresh process: interpreter, compiler and all draws."""
    command = [sys.executable, "-c", PEAK_MEMORY.format(size=SIZE)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _many_pairs() -> float:
    """20,000 different pairs of rates at 1,024 sites, on all threads."""
    alpha, beta = np.random.default_rng(0).uniform(0.001, 1, (2, 20_000))
    return _seconds(lambda: tasep.sample(alpha, beta, 1024), repeats=2)


def _one_update() -> float:
    """Seconds for one random-sequential update on one thread, at maximal current."""
    sweeps = 300
    seconds = _seconds(lambda: simulate(0.8, 0.9, SIZE, sweeps), repeats=5)
    return seconds / (sweeps * (SIZE + 1))


def _one_fit() -> float:
    """Draws and one fit by swaps as notebook 02 makes it in `quick`, on one thread."""
    box = np.array([[0.02, 0.02], [0.98, 0.98]])
    t = boxes.uniform_box(box, 15_000, 0)
    start = time.perf_counter()
    walls = tasep.domain_wall(tasep.sample(*t.T, 4_096), 2.0 ** np.arange(-2, 5))
    swaps.fit_swaps(walls, t, natural=torch.logit)
    return time.perf_counter() - start


def main() -> list[dict]:
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        exact, update = _one_configuration(), _one_update()
    finally:
        numba.set_num_threads(threads)
    # The spectral gap at maximal current is 3.578 / N^1.5; three relaxation times leave 5 %.
    burn_in = 3 * SIZE**1.5 / 3.578 * (SIZE + 1)
    fit = _one_fit()
    memory, pairs = _peak_memory() / 2**30, _many_pairs()
    chain = f"one exact chain of {SIZE:,} sites"
    ratio, fixed = burn_in * update / exact, 2e9 * update / exact
    many = "20,000 pairs of rates, 1,024 sites"
    start = "random-sequential simulation from a random start"
    return [
        _row(f"TASEP: {chain}, one core, slowest rates", 1e3 * exact, "ms", "<= 50", exact <= 0.05),
        _row(
            f"TASEP: 1,000 chains of {SIZE:,} sites at one pair, peak of the whole process",
            memory,
            "GiB",
            "< 1",
            memory < 1,
        ),
        _row(
            "TASEP: draws and one fit by swaps, 15,000 chains of 4,096 sites",
            fit,
            "s",
            "< 60",
            fit < 60,
        ),
        _row(f"TASEP: {many}, {threads} threads", pairs, "s", "< 60", pairs < 60),
        _row(
            f"TASEP: {chain} against {start}, burn-in of three relaxation times N^1.5 / 3.578"
            " at maximal current (extrapolated from 300 sweeps)",
            ratio,
            "times faster",
            "> 1000",
            ratio > 1000,
        ),
        _row(
            f"TASEP: {chain} against {start}, 2e9 updates as in the predecessor paper, which is"
            " 0.2 relaxation times at maximal current (extrapolated from 300 sweeps)",
            fixed,
            "times faster",
            "> 1000",
            fixed > 1000,
        ),
    ]
