"""Square-lattice Ising model with field: equilibrium samples and the exact answers.

Weight exp(beta sum s s' + field sum s): `beta` = 1/T and `field` = H/T are dimensionless, the
lattice is periodic, every bond counts once. Every random number is a hash of (seed, entry, sweep,
site): a configuration depends neither on its batch, nor on threads, nor on the device.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lib.physics import ising_loops, ising_tensor
from lib.physics.checks import SEEDS, Floats, Integers, check_count, check_reals
from lib.physics.ising_exact import (
    CRITICAL_BETA,
    check_parameters,
    cylinder_cumulants,
    cylinder_free_energy,
    log_partition,
    torus_cumulants,
    zero_field_curvature,
)
from lib.physics.ising_onsager import (
    kaufman_log_partition,
    onsager_energy,
    onsager_free_energy,
    onsager_magnetization,
)
from lib.physics.streams import GOLDEN, Words, mix

__all__ = [
    "CRITICAL_BETA",
    "cylinder_cumulants",
    "cylinder_free_energy",
    "equilibrium_sweeps",
    "kaufman_log_partition",
    "log_partition",
    "metropolis",
    "natural",
    "observables",
    "onsager_energy",
    "onsager_free_energy",
    "onsager_magnetization",
    "sample",
    "torus_cumulants",
    "trajectory",
    "windows",
    "zero_field_curvature",
]

UPDATES_PER_BLOCK = 2**26  # spin updates between two steps of the progress bar, about a second
SITES_PER_BLOCK = 2**22  # sites held at once by the tensor code, about a gigabyte
LARGEST_SIZE = 46_340  # its square is the last below 2^31, as labels of clusters are 32 bits

Spins = NDArray[np.int8]


def sample(
    beta: ArrayLike,
    field: ArrayLike,
    size: int,
    *,
    sweeps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    start: str = "hot",
    first: int = 0,
) -> Spins:
    """Draw one equilibrium configuration per (beta, field) entry by Swendsen-Wang updates.

    Weight exp(beta sum s s' + field sum s). One sweep: equal neighbours are bonded with
    probability 1 - exp(-2 beta); a spin equal to sign(field) is bonded to the ghost spin with
    1 - exp(-2 |field|); clusters bonded to the ghost take sign(field), the others a fair sign.
    Both probabilities are rounded to multiples of 2^-32, so |field| < 1e-10 draws as no field.

    beta, field: 1/T >= 0 and H/T, numbers or (n,). size: linear, 3 to 46,340.
    sweeps: from the start; None takes `equilibrium_sweeps(size)`. seed: 0 to 2^64 - 1.
    device: "cpu" for compiled code on all threads, "cuda" or "cuda:1" for tensors on a GPU, "torch"
    for the same tensor code on the CPU. All give the same configurations.
    start: "hot" (independent random signs) or "cold" (all +1).
    first: index of the first entry: entries a.. b drawn with first=a equal rows a .. b of one
    long draw, so a large set can be made in pieces.
    Returns int8 (n, size, size), values -1 and +1. Raises ValueError for anything else.
    Source: Swendsen and Wang, Phys. Rev. Lett. 58, 86 (1987); ghost spin: Fortuin and Kasteleyn,
    Physica 57, 536 (1972).
    """
    sweeps = equilibrium_sweeps(size) if sweeps is None else sweeps
    return _evolve(beta, field, size, sweeps, start, seed, first=first, device=device)[0]


def equilibrium_sweeps(size: int) -> int:
    """Cluster sweeps from a hot start to equilibrium: ten autocorrelation times.

    ceil(10 tau) with tau = 1.3 size^(1/3): 26 at size 8, 66 at 128. Measured at 0.97, 1 and 1.03
    times the critical beta, without field and with 0.3 size^(-15/8): the largest tau of energy and
    |m| was 2.6, 3.4, 4.1, 5.1 and 7.0 sweeps at sizes 8, 16, 32, 64 and 128. Hot and cold starts
    meet well before: at size 32 the means of 3,000 chains differed by less than 0.1 standard
    deviations after at most half of the sweeps, also at beta = 10. ValueError for size below 3.
    """
    return int(np.ceil(13 * check_count("size", size, 3) ** (1 / 3)))


def trajectory(
    beta: ArrayLike,
    field: ArrayLike,
    size: int,
    sweeps: int,
    *,
    start: str = "hot",
    seed: int = 0,
    move: str = "cluster",
) -> tuple[Floats, Floats]:
    """Energy −sum s s' / N and magnetisation sum s / N after every sweep, (n, sweeps) each.

    move: "cluster" (`sample`) or "metropolis" (`metropolis`). All else, and errors, as of `sample`.
    """
    _, bonds, totals = _evolve(beta, field, size, sweeps, start, seed, move=move, record=True)
    return -bonds / size**2, totals / size**2


def metropolis(
    beta: ArrayLike,
    field: ArrayLike,
    size: int,
    sweeps: int,
    *,
    start: str = "hot",
    seed: int = 0,
) -> Spins:
    """Run single-spin Metropolis sweeps: the baseline, not known to be in equilibrium.

    Sites in order; a flip is accepted with probability min(1, exp(-2 s (beta sum s' + field))), so
    at beta = field = 0 a cold start never mixes. Arguments, result and errors as of `sample`.
    Source: Metropolis et al., J. Chem. Phys. 21, 1087 (1953).
    """
    return _evolve(beta, field, size, sweeps, start, seed, move="metropolis")[0]


def observables(samples: ArrayLike) -> Integers:
    """Sufficient statistics (sum s s', sum s), conjugate to (beta, field), int64 (n, 2).

    samples: (n, size, size) spins -1 and +1, size at least 3; ValueError for anything else.
    """
    values = check_reals("samples", samples, "spins -1 and +1")
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] < 3:
        shape = values.shape
        raise ValueError(f"samples has shape {shape}; allowed is (n, size, size), size >= 3")
    wrong = values[np.abs(values) != 1]
    if wrong.size:
        raise ValueError(f"samples holds {wrong[0]:g}; allowed is spins -1 and +1")
    spins = values.astype(np.int8)
    neighbours = np.roll(spins, 1, axis=1) + np.roll(spins, 1, axis=2)
    return np.stack([(spins * neighbours).sum((1, 2)), spins.sum((1, 2))], axis=1, dtype=np.int64)


def windows(samples: ArrayLike) -> Floats:
    """Shares of the kinds of 2 x 2 windows: 0 to 4 spins up, and two up on a diagonal, (n, 6).

    samples: (n, size, size), spins up where positive, periodic.
    """
    up = (np.asarray(samples) > 0).astype(np.int8)
    right, below, corner = (np.roll(up, shift, (1, 2)) for shift in ((0, 1), (1, 0), (1, 1)))
    number = up + right + below + corner
    kinds = [number == k for k in range(5)] + [(up == corner) & (right == below) & (up != right)]
    return np.stack([kind.mean((1, 2)) for kind in kinds], 1)


def natural(t: ArrayLike | Tensor) -> Tensor:
    """Map (T, H) to the natural parameters (1/T, H/T), (..., 2); T = 0 gives infinity.

    Differentiable, safe under `torch.func` transforms; arrays and lists become float64. Raises
    ValueError for another last dimension, or values that are not real numbers.
    """
    t = t if isinstance(t, Tensor) else torch.as_tensor(check_reals("t", t, "finite (T, H)"))
    if t.ndim == 0 or t.shape[-1] != 2 or t.is_complex() or t.dtype == torch.bool:
        given = f"{t.dtype} of shape {tuple(t.shape)}"
        raise ValueError(f"t is {given}; allowed are real numbers (T, H) of shape (..., 2)")
    temperature, field = (t if t.is_floating_point() else t.double()).unbind(-1)
    return torch.stack([1 / temperature, field / temperature], dim=-1)


def _entries(beta: ArrayLike, field: ArrayLike) -> tuple[Floats, Floats]:
    """One (beta, field) pair per configuration."""
    beta, field = check_parameters(beta, field)
    if beta.ndim > 1:
        raise ValueError(f"beta and field have shape {beta.shape}; allowed is a number or (n,)")
    return beta.reshape(-1).copy(), field.reshape(-1).copy()


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> int:
    """Position of value among the allowed ones."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed is one of {', '.join(allowed)}")
    return allowed.index(value)


def _evolve(
    beta: ArrayLike,
    field: ArrayLike,
    size: int,
    sweeps: int,
    start: str,
    seed: int,
    *,
    move: str = "cluster",
    first: int = 0,
    record: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[Spins, Integers, Integers]:
    """Run of all entries: (spins, sum s s', sum s), the sums for every sweep or none.

    Compiled on the CPU, clusters as tensors elsewhere.
    """
    beta, field = _entries(beta, field)
    size, sweeps = check_count("size", size, 3, LARGEST_SIZE), check_count("sweeps", sweeps, 1)
    hot = _choice("start", start, ("cold", "hot")) == 1
    cluster = _choice("move", move, ("metropolis", "cluster")) == 1
    keys, chances = _keys(seed, first, len(beta)), (_chances(beta), _chances(np.abs(field)))
    spins = np.empty((len(beta), size, size), np.int8)
    bonds = np.zeros((len(beta), sweeps if record else 0), np.int64)
    totals = np.zeros_like(bonds)
    if str(device) == "cpu":
        per_entry = (beta, field, *chances, keys, spins, bonds, totals)
        for part in _blocks(len(beta), max(64, UPDATES_PER_BLOCK // (size**2 * sweeps))):
            ising_loops.run(cluster, hot, sweeps, *(array[part] for array in per_entry))
        return spins, bonds, totals
    device = ising_tensor.check_device(device)
    per_entry = (*chances, np.where(field > 0, 1, -1), keys)
    for part in _blocks(len(beta), max(1, SITES_PER_BLOCK // size**2)):
        batch = (array[part] for array in per_entry)
        spins[part] = ising_tensor.evolve(*batch, size, sweeps, hot, device)
    return spins, bonds, totals


def _blocks(count: int, block: int) -> Iterator[slice]:
    """Consecutive slices, with a progress bar when there is more than one."""
    starts = range(0, count, block)
    hidden = None if len(starts) > 1 else True
    for start in tqdm(starts, desc="Ising", unit="block", disable=hidden, leave=False):
        yield slice(start, start + block)


def _chances(strength: Floats) -> Words:
    """1 - exp(-2 strength) as a threshold for 32 random bits; 2^32 means always."""
    return np.round(-np.expm1(-2 * strength) * 2.0**32).astype(np.uint64)


def _keys(seed: int, first: int, count: int) -> Words:
    """Well-separated 64-bit keys, one per entry."""
    first, seed = check_count("first", first, 0, 2**62), check_count("seed", seed, 0, SEEDS)
    index = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    root = mix(np.array([seed], dtype=np.uint64) + GOLDEN)
    return mix(root + index * GOLDEN)
