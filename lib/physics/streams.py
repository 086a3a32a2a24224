"""Random numbers for parallel loops: a function of (key, number), SplitMix64 by counter.

The `number`-th value of the stream that starts at `key` is the finaliser of key + number * golden
ratio (Steele, Lea and Flood, OOPSLA 2014), so that loops may run in any order and on any threads.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True)
def mix(z: np.uint64 | Words) -> np.uint64 | Words:
    """Finaliser of SplitMix64, for a number or an array, unsigned."""
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def draw(key: np.uint64, number: int) -> np.uint64:
    """64 random bits: value `number` of the stream `key`."""
    return mix(key + np.uint64(number) * GOLDEN)


def torch_threads_kept(kernel: Callable) -> Callable:
    """A compiled parallel loop without its side effect.

    It sets the number of OpenMP threads of the calling thread, which is also that of torch: with
    `OMP_NUM_THREADS=1`, or on a machine with other work, every later step of torch would use all
    cores and wait for them.
    """

    @functools.wraps(kernel)
    def run(*arguments: object) -> object:
        threads = torch.get_num_threads()
        try:
            return kernel(*arguments)
        finally:
            torch.set_num_threads(threads)

    return run
