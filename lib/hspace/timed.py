"""A call and its seconds, kept together where a cache keeps the call."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Timed(NamedTuple):
    """What a call returned, and the seconds it took when it was computed."""

    value: object
    seconds: float


def timed(function: Callable, /, *args: object, **kwargs: object) -> Timed:
    """function(*args, **kwargs) and its seconds."""
    begin = time.perf_counter()
    value = function(*args, **kwargs)
    return Timed(value, time.perf_counter() - begin)
