"""Swendsen-Wang updates as tensor operations, for a GPU: draw for draw those of `ising`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.physics.streams import Words

GOLDEN, MIX_1, MIX_2 = (  # SplitMix64 constants as signed 64-bit integers
    np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
    .view(np.int64)
    .tolist()
)
LOW = 2**32 - 1


def check_device(name: str | torch.device) -> torch.device:
    """Return the torch device called `name`; ValueError when it is unknown or absent."""
    try:
        device = torch.device("cpu" if str(name) == "torch" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, ImportError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {name!r}, which torch cannot use ({reason}); allowed is 'cpu' (compiled), "
            "'torch' (tensors on the CPU) or a present accelerator such as 'cuda'"
        ) from error
    return device


def evolve(
    bond: Words,
    ghost: Words,
    sign: NDArray[np.int64],
    keys: Words,
    size: int,
    sweeps: int,
    hot: bool,
    device: torch.device,
) -> NDArray[np.int8]:
    """Run cluster sweeps on one batch, int8 (b, size, size).

    bond, ghost: (b,) thresholds for 32 random bits. sign: (b,) of the ghost spin. keys: (b,) of the
    random streams. hot: random, else all +1.
    """

    def column(values: NDArray) -> Tensor:
        return torch.as_tensor(values.astype(np.int64), device=device)[:, None]

    bond, ghost, sign, key = column(bond), column(ghost), column(sign), column(keys)
    site = torch.arange(1, size**2 + 1, device=device)
    spins = _fair_signs(_draw(key, 2 * site + 1)) if hot else torch.ones_like(key * site)
    for sweep in range(sweeps):
        number = 2 * (size**2 * (sweep + 1) + site)
        bits, more = _draw(key, number), _draw(key, number + 1)
        spins = _cluster_sweep(spins, size, bond, ghost, sign, bits, more)
    return spins.reshape(-1, size, size).to(torch.int8).cpu().numpy()


def _draw(key: Tensor, number: Tensor) -> Tensor:
    """SplitMix64 in wrapping signed arithmetic; masks undo the sign extension of the shifts."""
    z = key + number * GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


def _fair_signs(bits: Tensor) -> Tensor:
    """The highest bit as a sign."""
    return (bits < 0).long() * 2 - 1


def _cluster_sweep(
    spins: Tensor, size: int, bond: Tensor, ghost: Tensor, sign: Tensor, bits: Tensor, more: Tensor
) -> Tensor:
    """One Swendsen-Wang update of (b, size^2) spins."""
    square = spins.reshape(-1, size, size)
    left = (square == square.roll(1, 2)) & ((bits & LOW) < bond).reshape(square.shape)
    up = (square == square.roll(1, 1)) & (((bits >> 32) & LOW) < bond).reshape(square.shape)
    labels = _clusters(left, up)
    touched = ((spins == sign) & ((more & LOW) < ghost)).long()
    tied = touched.scatter_reduce(1, labels, touched, "amax").gather(1, labels) > 0
    return torch.where(tied, sign, _fair_signs(more).gather(1, labels))


def _clusters(left: Tensor, up: Tensor) -> Tensor:
    """Smallest site index of each cluster, by hooking roots and pointer jumping."""
    batch, size, _ = left.shape
    labels = torch.arange(size**2, device=left.device).repeat(batch, 1)
    links = ((left, 1, 2), (left.roll(-1, 2), -1, 2), (up, 1, 1), (up.roll(-1, 1), -1, 1))
    while True:
        square = labels.reshape(left.shape)
        lowest = square
        for bonded, shift, axis in links:
            lowest = torch.where(bonded, torch.minimum(lowest, square.roll(shift, axis)), lowest)
        lowest = lowest.reshape(labels.shape)
        if torch.equal(lowest, labels):
            return labels
        hooked = labels.scatter_reduce(1, labels, lowest, "amin")
        labels = torch.minimum(hooked, lowest)
        labels = labels.gather(1, labels)
        labels = labels.gather(1, labels)
