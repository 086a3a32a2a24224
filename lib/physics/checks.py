"""What every call of this room asks of its numbers: real, finite, whole where they count.

Nothing is cast that would lose its meaning on the way: truth values, complex numbers, text and
masked entries are refused, not read as numbers.
"""

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SEEDS = 2**64 - 1  # the largest seed; beyond it two seeds would share their draws


def check_reals(
    name: str, values: ArrayLike, allowed: str, least: float = -np.inf, most: float = np.inf
) -> Floats:
    """Return finite real numbers in [least, most] as a float64 array; ValueError otherwise."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is no array ({error}); allowed is {allowed}") from None
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError(f"{name} holds values of type {array.dtype}; allowed is {allowed}")
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked entries, drop or fill them; allowed is {allowed}")
    array = array.astype(np.float64)
    bad = array[~(np.isfinite(array) & (array >= least) & (array <= most))]
    if bad.size:
        raise ValueError(f"{name} holds {bad[0]}; allowed is {allowed}")
    return array


def check_count(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return value as an int in [least, most]; ValueError otherwise, also for truth values."""
    allowed = f"a whole number >= {least}" if most is None else f"a whole number {least} to {most}"
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or (most is not None and count > most):
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}")
    return count


def check_equal_shapes(first: Floats, second: Floats, names: str) -> tuple[Floats, Floats]:
    """Broadcast two arrays; ValueError, with both shapes, where that cannot be done."""
    try:
        return np.broadcast_arrays(first, second)
    except ValueError:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(
            f"{names} have shapes {shapes}; give equal lengths, or a single number for one of them"
        ) from None
