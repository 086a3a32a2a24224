"""Compiled loops that leave the number of threads of torch as it was."""

import functools
from collections.abc import Callable

import torch


def torch_threads_kept(kernel: Callable) -> Callable:
    """A compiled parallel loop without its side effect.

    It sets the number of OpenMP threads of the calling thread, which is also that of torch: with
    `OMP_NUM_THREADS=1`, or on a machine with other work, every later step of torch would use all
    cores and wait for them.
    """

    @functools.wraps(kernel)
    def run(*arguments):
        threads = torch.get_num_threads()
        try:
            return kernel(*arguments)
        finally:
            torch.set_num_threads(threads)

    return run
