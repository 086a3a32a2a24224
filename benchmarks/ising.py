"""Ising draws: speed of a cluster update, and independent configurations against Metropolis."""

import time

import numba
import numpy as np

from lib.physics import ising

CORES = 2
# size: chains and sweeps of the trajectories, long enough to know tau within about a quarter
TRAJECTORIES = {
    64: {"cluster": (8, 2_000), "metropolis": (8, 30_000)},
    128: {"cluster": (8, 1_000), "metropolis": (4, 50_000)},
}
DRAWS = {
    "cluster": lambda beta, size, sweeps: ising.sample(beta, 0.0, size, sweeps=sweeps),
    "metropolis": lambda beta, size, sweeps: ising.metropolis(beta, 0.0, size, sweeps),
}


def _row(claim, measured, unit, target, holds):
    return {
        "claim": claim,
        "measured": float(measured),
        "unit": unit,
        "target": target,
        "holds": bool(holds),
    }


def _seconds_per_update(size, sweeps, repeats, clock):
    """Shortest time per spin update of each move, measured in turns at the critical point."""
    configurations = 4
    beta = np.full(configurations, ising.CRITICAL_BETA)
    shortest = {}
    for repeat in range(repeats + 1):
        for move, draw in DRAWS.items():
            start = clock()
            draw(beta, size, sweeps)
            seconds = (clock() - start) / (configurations * sweeps * size**2)
            if repeat > 0:  # the first only compiles
                shortest[move] = min(seconds, shortest.get(move, seconds))
    return shortest


def _slowest_time(move, size):
    """Integrated autocorrelation time, in sweeps, of the slower of energy and |m|."""
    chains, sweeps = TRAJECTORIES[size][move]
    beta = np.full(chains, ising.CRITICAL_BETA)
    energy, m = ising.trajectory(beta, 0.0, size, sweeps, move=move)
    kept = (series[:, sweeps // 10 :] for series in (energy, np.abs(m)))
    return max(ising.autocorrelation_time(series).mean() for series in kept)


def _independent_per_second(size):
    """Independent configurations per second of one core, for each move: one every 2 tau sweeps."""
    threads = numba.get_num_threads()
    tau = {move: _slowest_time(move, size) for move in DRAWS}
    numba.set_num_threads(1)
    try:
        seconds = _seconds_per_update(size, 2**18 // size**2, 20, time.process_time)
    finally:
        numba.set_num_threads(threads)
    return {move: 1 / (2 * tau[move] * seconds[move] * size**2) for move in DRAWS}


def _comparison(size):
    """Rows of one size."""
    per_second = _independent_per_second(size)
    where = f"critical point, {size} x {size}, one core"
    gain = per_second["cluster"] / per_second["metropolis"]
    return [
        _row(
            f"Ising: independent configurations by cluster moves, {where}",
            per_second["cluster"],
            "per second",
            "> Metropolis",
            gain > 1,
        ),
        _row(
            f"Ising: cluster moves against compiled single-spin Metropolis, {where}, one"
            " configuration per two integrated autocorrelation times of the slower of energy, |m|",
            gain,
            "times faster",
            "> 10",
            gain > 10,
        ),
    ]


def _cluster_speed(cores):
    """Spin updates per second by cluster moves on 128 x 128."""
    threads = numba.get_num_threads()
    numba.set_num_threads(cores)
    try:
        # many short runs: the shortest is then one that no other process interrupted
        return 1 / _seconds_per_update(128, 5, 400, time.perf_counter)["cluster"]
    finally:
        numba.set_num_threads(threads)


def main() -> list[dict]:
    cores = min(CORES, numba.get_num_threads())
    speed = _cluster_speed(cores)
    claim = f"Ising: spin updates by cluster moves, critical point, 128 x 128, {cores} cores"
    rows = [_row(claim, speed / 1e6, "million per second", ">= 40", speed >= 40e6)]
    return rows + [row for size in TRAJECTORIES for row in _comparison(size)]
