"""All states of a small torus, counted by their sufficient statistics."""

import numpy as np

from lib.physics.ising_exact import check_count


def levels(size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (sum s s', sum s) of the size x size torus, and how many states share each.

    log Z(beta, field) = log Σ_k count_k exp(beta E_k + field M_k), by enumeration.

    Args:
        size: 3 or 4 (512 or 65,536 states).

    Returns:
        int64 (k, 2) and int64 (k,).

    Raises:
        ValueError: another size.
    """
    sites = check_count("size", size, 3, 4) ** 2
    spins = 1 - 2 * ((np.arange(2**sites)[:, None] >> np.arange(sites)) & 1)
    lattices = spins.reshape(-1, size, size)
    bonds = (lattices * (np.roll(lattices, 1, 1) + np.roll(lattices, 1, 2))).sum((1, 2))
    return np.unique(np.stack([bonds, spins.sum(1)], 1), axis=0, return_counts=True)
