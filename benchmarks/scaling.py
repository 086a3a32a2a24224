"""How geodesics and the metric scale: cost per path in the batch, cost per point in the points.

Writes `build/bench/scaling.png`; the rows are the exponents p of time ∝ size^p over its upper half.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.geometry import Potential, pairs, row, seconds, tabulate
from lib.geometry.geodesics import geodesic
from lib.geometry.metric import fisher_metric

BATCHES = (1, 8, 64, 256, 1024, 4096)
POINTS = (256, 1024, 4096, 16384)
PICTURE = Path(__file__).resolve().parents[1] / "build" / "bench" / "scaling.png"


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of log time in log size over the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0])


def draw(curves: dict) -> None:
    """Time per item against the number of items."""
    fig, axes = plt.subplots(1, len(curves), figsize=(6.9, 2.6), layout="constrained")
    for ax, (label, (sizes, times)) in zip(axes, curves.items(), strict=True):
        ax.semilogx(sizes, 1e3 * np.divide(times, sizes), "o-", ms=4)
        ax.set(xlabel=label, ylabel="milliseconds for one", ylim=(0, None))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(PICTURE, dpi=120)
    plt.close(fig)


def main() -> list[dict]:
    """Rows for `make bench`."""
    network = Potential().double().requires_grad_(False)
    table = tabulate(network, 64)
    single, t = Potential().requires_grad_(False), torch.rand(max(POINTS), 2)
    curves = {
        "geodesics in a batch": (
            BATCHES, [seconds(lambda b=b: geodesic(table, *pairs(b, 2))) for b in BATCHES],
        ),
        "points of the metric": (
            POINTS, [seconds(lambda n=n: fisher_metric(single, t[:n])) for n in POINTS],
        ),
    }  # fmt: skip
    draw(curves)
    return [
        row(f"{label}: p of time ∝ size^p", p := exponent(*curve), "power", "<= 1.1", p <= 1.1)
        for label, curve in curves.items()
    ]
