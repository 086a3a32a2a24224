"""Random numbers that are a function of (key, number): SplitMix64 as a counter-based generator.

The `number`-th value of the stream that starts at `key` is the finaliser of key + number * golden
ratio (Steele, Lea and Flood, OOPSLA 2014), so that loops may run in any order and on any threads.
"""

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True)
def mix(z):
    """Finaliser of SplitMix64, for a number or an array, unsigned."""
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def draw(key, number):
    """64 random bits: value `number` of the stream `key`."""
    return mix(key + np.uint64(number) * GOLDEN)
