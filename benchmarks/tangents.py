"""Exact pullback of a slice: the linearised network against `torch.func.jvp` of the same sampler.

Both differentiate the embedded pixel model along the two axes of a slice, through all steps.
"""

import torch

from benchmarks.sampling import seconds
from lib import slices
from lib.diffusion import models
from lib.geometry import metric

POINTS, STEPS, REPEATS = 4, 3, 3


def main() -> list[dict]:
    """Two rows: forward mode over the tangents, and the tangents over the images alone."""
    network = models.load("avatars-ddpm")
    twin = models.load("avatars-ddpm", differentiable=True)
    plane, t = slices.Slice(network.noise(3, 0)), slices.grid(POINTS)

    def draw(s: torch.Tensor) -> torch.Tensor:
        return slices.render(twin, plane, s, steps=STEPS, differentiable=True)

    def ours() -> None:
        slices.jacobian(network, plane, t, steps=STEPS)

    def forward_mode() -> None:
        metric.pullback_metric(draw, t, chunk=16)

    def images() -> None:
        slices.render(network, plane, t, steps=STEPS)

    ours(), forward_mode()
    times = [[seconds(run) for run in (ours, forward_mode, images)] for _ in range(REPEATS)]
    own, theirs, plain = (min(column) for column in zip(*times, strict=True))
    return [
        {
            "claim": "pullback of the pixel model: torch.func.jvp over the linearised network",
            "measured": theirs / own,
            "unit": "times",
            "target": ">= 1.7",
            "holds": theirs / own >= 1.7,
        },
        {
            "claim": "pullback of the pixel model, both directions, over its images",
            "measured": own / plain,
            "unit": "times",
            "target": "<= 5",
            "holds": own / plain <= 5,
        },
    ]
