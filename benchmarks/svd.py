"""SVD of latents: the closed-form edit per channel, and the batched decomposition against a loop.

The edit is timed with its two decompositions, in seconds of one core's work, which other programs
on the machine do not change. The loop is the library's own SVD, one channel at a time, on the same
device; the batch also fixes signs and looks for degenerate values.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lib import svd
from lib.diffusion.models import unit_normal

SHAPES = {"pixel model": (3, 32, 32), "latent model": (4, 16, 16), "SD 2.1-base": (4, 64, 64)}
SEEDS, REPEATS = 16, 7


@contextmanager
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_seconds(
    *runs: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The shortest time of each, over interleaved repeats."""
    times = []
    for _ in range(REPEATS):
        times.append([])
        for run in runs:
            begin = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[-1].append(clock() - begin)
    return [min(column) for column in zip(*times, strict=True)]


def edit(name: str, shape: tuple[int, ...]) -> dict:
    x, z = (unit_normal((SEEDS, *shape), seed) for seed in (0, 1))
    run = lambda: svd.integrate(x, x + z / 2, k=shape[-1] // 2)  # noqa: E731
    seconds = best_seconds(run, clock=time.process_time)[0]
    measured = 1000 * seconds / (SEEDS * shape[0])
    return {
        "claim": f"AVI, {name}: closed-form edit of a channel {shape[1]} x {shape[2]}, one core",
        "measured": measured,
        "unit": "ms per channel",
        "target": "<= 5",
        "holds": measured <= 5,
    }


def decomposition(name: str, shape: tuple[int, ...], device: str) -> dict:
    x = unit_normal((SEEDS, *shape), 0).to(device)

    def loop() -> None:
        for channel in x.flatten(0, 1):
            torch.linalg.svd(channel, full_matrices=False)

    by_loop, by_batch = best_seconds(loop, lambda: svd.decompose(x))
    return {
        "claim": f"SVD, {name} on {device}: {len(x)} latents at once against the library's loop",
        "measured": by_loop / by_batch,
        "unit": "times",
        "target": ">= 0.8",
        "holds": by_loop / by_batch >= 0.8,
    }


def main() -> list[dict]:
    """The edit on one core, the decomposition on every device that is here."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with one_core():
        rows = [edit(*item) for item in SHAPES.items()]
        return rows + [decomposition(*item, d) for d in devices for item in SHAPES.items()]
