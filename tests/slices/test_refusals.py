"""Bad input to the slice rooms: a ValueError that says what was given and what is allowed."""

import numpy as np
import pytest
import torch

from lib import slices
from lib.diffusion import mixture
from lib.slices import borders, fractal, maps, refine, relief, scattered

MIXTURE = mixture.mixture(torch.ones(1, 1, 3, 3), 0.5)
PLANE = slices.Slice(MIXTURE.noise(3, 1))
T, NAN = slices.grid(3), float("nan")


def right(t):
    return t[:, 0] > 0.5


def render(**options):
    return slices.render(MIXTURE, PLANE, T, **{"steps": 2, **options})


CALLS = {
    "anchors are str": lambda: slices.Slice("abc"),
    "anchors are NoneType": lambda: slices.Slice(None),
    "complex": lambda: slices.Slice(torch.ones(3, 1, 2, 2) * 1j),
    "t is NoneType": lambda: PLANE.latents(None),
    "t is str": lambda: PLANE.latents("middle"),
    "t is list": lambda: PLANE.latents([[0.1], [0.2, 0.3]]),
    "dtype = torch.int32": lambda: PLANE.resolution(torch.int32),
    "points = 1,": lambda: slices.grid(1),
    "points = 2.5": lambda: slices.grid(2.5),
    "two corners": lambda: slices.grid(3, low=(0.0,)),
    "plane is Tensor": lambda: slices.render(MIXTURE, PLANE.anchors, T, steps=2),
    "plane is str": lambda: slices.jacobian(MIXTURE, "plane", T, steps=2),
    r"plane has latents of shape \(1, 2, 5\), and this model \(1, 3, 3\)": lambda: slices.jacobian(
        MIXTURE, slices.Slice(torch.randn(3, 1, 2, 5)), T, steps=2
    ),
    r"\[0\] rows for 9 images": lambda: render(features=torch.mean),
    r"\[4\] rows for 9 images": lambda: render(features=lambda x: x[:4]),
    "tolerance = -1": lambda: refine.refine(lambda t: t, 4, tolerance=-1.0),
    "lines = 0": lambda: fractal.line_spread(64, lines=0),
    "draws = 1": lambda: fractal.line_spread(64, draws=1),
    "largest = 0": lambda: fractal.box_counting(np.eye(16), largest=0),
    "for 81 points": lambda: refine.refine(lambda t: t[:2], 4, share=0.5),
    "not finite": lambda: refine.refine(lambda t: t * NAN, 4, share=0.5),
    r"\(2, 2\) and \(3, 3\)": lambda: maps.overlap(np.ones((2, 2)), np.ones((3, 3))),
    "constant": lambda: maps.rank_agreement(np.eye(2), np.ones((2, 2)), blocks=2),
    r"\(2, 3\); expected finite": lambda: relief.stretch(torch.ones(2, 3)),
    "metric has shape": lambda: relief.stretch(torch.full((2, 2), NAN)),
    "spacing = 0": lambda: relief.neighbour_trace(np.eye(3), 0.0),
    "grid": lambda: relief.neighbour_trace(np.ones((1, 4)), 0.1),
    "contrast = -1": lambda: relief.ridges(np.eye(3), contrast=-1),
    "finite map": lambda: relief.ridges(np.full((3, 3), NAN)),
    r"shape \(3,\)": lambda: relief.phases(np.ones(3)),
    "edge = 2": lambda: fractal.traced(right, (0.5, 0.5), 2.0, 4),
    "dimension = 2": lambda: fractal.koch(9, 2.0),
    "4 samples": lambda: scattered.local_regression(np.eye(4), np.eye(4)[:, :2], T),
    "one label for each": lambda: fractal.traced(lambda t: right(t)[:3], (0.5, 0.5), 1.0, 4),
    "labels have shape": lambda: fractal.border(np.ones(3)),
    r"distances = \[\]": lambda: fractal.difference_slopes(right, T, (1.0, 0.0), []),
    "tolerance = 1e-30": lambda: borders.crossings(right, [[0.0, 0]], [[1, 0]], tolerance=1e-30),
    "coordinates that are not": lambda: borders.crossings(right, [[NAN, 0]], [[1.0, 0]]),
    "on one grid": lambda: borders.border_pairs(np.eye(3), np.ones((2, 2)), most=1),
    "most = 0": lambda: borders.border_pairs(np.eye(3), most=0),
    "not empty": lambda: borders.combined(3),
    "step = 0": lambda: borders.flip_width(right, None, step=0),
    "width = nan": lambda: maps.smooth(np.eye(3), NAN, spacing=1.0),
    "steps = 0;": lambda: mixture.flow(MIXTURE, MIXTURE.noise(1, 0), steps=0),
    r"latents \(2, 3\)": lambda: mixture.flow(MIXTURE, torch.ones(2, 3)),
    "range of float64": lambda: mixture.total_stretch(0.01),
}


@pytest.mark.parametrize("message", CALLS)
def test_refusal(message):
    with pytest.raises(ValueError, match=message):
        CALLS[message]()
