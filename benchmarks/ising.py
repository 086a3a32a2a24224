"""Ising draws: speed of a cluster update, and independent configurations against Metropolis.

The rival is `mcising`, a Rust library with both moves, where it is installed (the extra `bench`);
the kit's own compiled Metropolis stands in where it is not. Ours and the rival's runs take turns on
one core, so that both see the same machine.
"""

import time
from collections.abc import Callable

import numba
import numpy as np

from lib.physics import ising

try:
    from mcising import IsingSimulation
except ImportError:
    IsingSimulation = None

TURNS = 40
# size: chains and sweeps of the trajectories, long enough to know tau within about a quarter
TRAJECTORIES = {
    64: {"cluster": (8, 2_000), "metropolis": (8, 30_000)},
    128: {"cluster": (8, 1_000), "metropolis": (4, 50_000)},
}
RIVAL_MOVES = {"cluster": "swendsen_wang", "metropolis": "metropolis"}
CHAINS = 4


def _row(claim: str, measured: float, unit: str, target: str, holds: bool) -> dict:
    return {
        "claim": claim,
        "measured": float(measured),
        "unit": unit,
        "target": target,
        "holds": bool(holds),
    }


def _ours(move: str, size: int, sweeps: int) -> Callable[[], object]:
    """A run of our sampler at the critical point, of CHAINS sweeps x `sweeps`."""
    beta = np.full(CHAINS, ising.CRITICAL_BETA)
    if move == "cluster":
        return lambda: ising.sample(beta, 0.0, size, sweeps=sweeps)
    return lambda: ising.metropolis(beta, 0.0, size, sweeps)


def _rivals(move: str, size: int, sweeps: int) -> Callable[[], object]:
    """The same number of updates by the rival, on a lattice that is near equilibrium."""
    simulation = IsingSimulation(size, 1.0, 0.0, 0.0, 0.0, 0, RIVAL_MOVES[move])
    simulation.sweep(200, temperature=1 / ising.CRITICAL_BETA)
    return lambda: simulation.sweep(CHAINS * sweeps, temperature=1 / ising.CRITICAL_BETA)


def _speeds(size: int) -> dict[tuple[str, str], float]:
    """Spin updates per second on one core by (who, move): the best of many runs in turns."""
    sweeps, best = 2**17 // size**2, {}
    runs = {("ours", move): _ours(move, size, sweeps) for move in RIVAL_MOVES}
    if IsingSimulation:
        runs |= {("mcising", move): _rivals(move, size, sweeps) for move in RIVAL_MOVES}
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        for run in runs.values():
            run()  # compiles
        for name in TURNS * list(runs):
            start = time.process_time()
            runs[name]()
            speed = CHAINS * sweeps * size**2 / (time.process_time() - start)
            best[name] = max(speed, best.get(name, 0.0))
    finally:
        numba.set_num_threads(threads)
    return best


def _slowest_time(move: str, size: int) -> float:
    """Integrated autocorrelation time, in sweeps, of the slower of energy and |m|."""
    chains, sweeps = TRAJECTORIES[size][move]
    beta = np.full(chains, ising.CRITICAL_BETA)
    energy, m = ising.trajectory(beta, 0.0, size, sweeps, move=move)
    kept = (series[:, sweeps // 10 :] for series in (energy, np.abs(m)))
    return max(ising.autocorrelation_time(series).mean() for series in kept)


def _comparison(size: int) -> list[dict]:
    """Rows of one size."""
    speeds, tau = _speeds(size), {move: _slowest_time(move, size) for move in RIVAL_MOVES}
    who = "mcising" if IsingSimulation else "ours"
    # an independent configuration every 2 tau sweeps, by either's Metropolis the same number
    gain = speeds["ours", "cluster"] / speeds[who, "metropolis"]
    gain *= tau["metropolis"] / tau["cluster"]
    where = f"critical point, {size} x {size}, one core"
    per_update = speeds["ours", "cluster"]
    rows = [
        _row(
            f"Ising: spin updates by cluster moves, {where}",
            per_update / 1e6,
            "million per second",
            ">= 45",
            per_update >= 45e6,
        ),
        _row(
            f"Ising: independent configurations by cluster moves against single-spin Metropolis"
            f" ({who}), {where}, one per two autocorrelation times of the slower of energy, |m|",
            gain,
            "times as many",
            ">= 10",
            gain >= 10,
        ),
    ]
    if IsingSimulation:
        ratio = speeds["ours", "cluster"] / speeds["mcising", "cluster"]
        name = f"Ising: cluster updates against mcising (Rust, Swendsen-Wang), {where}"
        rows.append(_row(name, ratio, "times as fast", ">= 2", ratio >= 2))
        ratio = speeds["ours", "metropolis"] / speeds["mcising", "metropolis"]
        name = f"Ising: our baseline, single-spin updates, against mcising (Rust), {where}"
        rows.append(_row(name, ratio, "times as fast", ">= 0.5", ratio >= 0.5))
    return rows


def main() -> list[dict]:
    """Rows for `make bench`."""
    return [row for size in TRAJECTORIES for row in _comparison(size)]
