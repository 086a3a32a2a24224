"""Ising draws: speed of a cluster update, and independent configurations against Metropolis.

The rival is `mcising`, a Rust library with both moves, where it is installed (the extra `bench`);
the kit's own compiled Metropolis stands in where it is not. Ours and the rival's runs take turns on
one core, so that both see the same machine.
"""

import time
from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import ArrayLike

from lib.physics import ising
from lib.physics.checks import Floats, check_reals

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


def autocorrelation_time(series: ArrayLike, window: float = 6.0) -> Floats:
    """Integrated autocorrelation time of each row of (..., length), in steps, at least 1/2.

    tau = 1/2 + sum_{t=1}^{W} rho(t), with the smallest W >= window tau; the error of the row's
    mean is std sqrt(2 tau / length), and independent or constant values have tau = 1/2. window: 4
    to 10; larger is less biased and noisier. Raises ValueError for other values.
    Source: Sokal, Monte Carlo Methods in Statistical Mechanics (1997), Eq. 3.17-3.19.
    """
    series = check_reals("series", series, "finite numbers")
    if series.ndim == 0 or series.shape[-1] < 2:
        raise ValueError(f"series has shape {series.shape}; allowed is (..., length >= 2)")
    if not 4 <= window <= 10:
        raise ValueError(f"window is {window}; allowed is 4 to 10")
    length = series.shape[-1]
    spectrum = np.fft.rfft(_deviations(series), 2 * length)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[..., :length] / np.arange(length, 0, -1)
    variance = covariance[..., :1]
    rho = np.where(variance > 0, covariance / np.where(variance > 0, variance, 1.0), 0.0)
    tau = 0.5 + np.cumsum(rho[..., 1:], axis=-1)
    closed = np.arange(1, length) >= window * tau
    stop = np.where(closed.any(-1), closed.argmax(-1), length - 2)
    return np.maximum(np.take_along_axis(tau, stop[..., None], axis=-1)[..., 0], 0.5)


def _deviations(series: Floats) -> Floats:
    """Rows less their means, by a power of two within [-2, 2]: squares neither vanish nor overflow.

    A constant row is exactly zero, though the mean of ten times 0.1 is not 0.1.
    """
    scale = np.frexp(np.abs(series).max(-1, keepdims=True))[1]
    rows = np.ldexp(series, -scale)
    constant = (series == series[..., :1]).all(-1, keepdims=True)
    rows = np.where(constant, 0.0, rows - rows.mean(-1, keepdims=True))
    return np.ldexp(rows, -np.frexp(np.abs(rows).max(-1, keepdims=True))[1])


def _slowest_time(move: str, size: int) -> float:
    """Integrated autocorrelation time, in sweeps, of the slower of energy and |m|."""
    chains, sweeps = TRAJECTORIES[size][move]
    beta = np.full(chains, ising.CRITICAL_BETA)
    energy, m = ising.trajectory(beta, 0.0, size, sweeps, move=move)
    kept = (series[:, sweeps // 10 :] for series in (energy, np.abs(m)))
    return max(autocorrelation_time(series).mean() for series in kept)


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
