"""A case for each public call of slices; what counts labels does so in NumPy, from any device."""

import torch
from cases_diffusion import STEPS, pixel, tiny
from table import CASES, EXCEPTIONS, ON_CPU

from lib import slices
from lib.slices import borders, crossings, fractal, maps, paths, refine, relief, scattered, timing

POINTS = torch.tensor([[0.1, 0.2], [0.7, 0.4], [0.9, 0.9]]).double()
LOW, HIGH = torch.tensor([[0.1, 0.1], [0.2, 0.3]]).double(), torch.tensor([[0.9, 0.8]] * 2).double()
GRID = slices.grid(12).view(12, 12, 2)
HILLS = ((GRID * 9).sin().sum(-1) + 2.5).double()
LABELS = (GRID.sum(-1) > 1).long()


def own(on):
    """A slice through latents where the caller has them."""
    return slices.Slice(on(tiny().noise(3, 0)))


def by_sum(on):
    """A classifier and a height of coordinates that answer on the device."""
    return lambda t: (on(t).sum(1) > 1).long(), lambda t: 5 * (on(t).sum(1) - 1)


def crossed(on):
    return borders.crossings(by_sum(on)[0], on(LOW), on(HIGH), tolerance=1e-3)


def decide(on):
    """Labels of places on paths, found on the device; an edit of strength c moves the border."""
    return lambda rows, s, c=0: on(s + 0.4 * c) + 0.1 * on(rows) > 0.6


def rendered(on):
    generator, _ = pixel(on)
    features = lambda x: x.flatten(1)[:, :4]  # noqa: E731
    plain = slices.render(generator, own(on), POINTS, **STEPS)
    return plain, slices.render(generator, own(on), on(POINTS), features=features, **STEPS)


def differentiated(on):
    generator, _ = pixel(on)
    two = lambda x: (x.flatten(1)[:, :4], x.mean((1, 2, 3))[:, None])  # noqa: E731
    plain = slices.jacobian(generator, own(on), POINTS, steps=2)
    return plain, slices.jacobian(generator, own(on), on(POINTS), steps=2, features=two)


def flat(on):
    """Features, labels and points of a map without its grid."""
    t = GRID.flatten(0, 1)
    return on(HILLS.view(-1, 1)), on(t), on(POINTS)


CASES |= {
    "slices.borders.crossings": crossed,
    "slices.borders.followed": lambda on: borders.followed(
        by_sum(on)[0], crossed(on), tolerance=1e-3
    ),
    "slices.borders.steepest": lambda on: borders.steepest(
        lambda t: (9 * by_sum(on)[1](t)).sigmoid()[:, None], on(LOW), on(HIGH - LOW), width=0.5
    ),
    "slices.borders.combined": lambda on: borders.combined(on(torch.stack([LABELS] * 2, -1))),
    "slices.borders.border_pairs": lambda on: borders.border_pairs(on(LABELS), on(HILLS), most=3),
    "slices.borders.flips_on": lambda on: borders.flips_on(on(HILLS > 3), on(LABELS)),
    "slices.borders.flip_share_error": lambda on: borders.flip_share_error(
        on(HILLS > 3), on(LABELS), blocks=2
    ),
    "slices.borders.flip_width": lambda on: borders.flip_width(
        by_sum(on)[1], crossed(on), step=0.01
    ),
    "slices.borders.phase_pairs": lambda on: borders.phase_pairs(on(LABELS + 1), 4),
    "slices.crossings.arc": lambda on: crossings.arc(
        *on([tiny().noise(2, 0), tiny().noise(2, 1)]), on(torch.tensor([0.3, 0.8]).double())
    ),
    "slices.crossings.first_flip": lambda on: crossings.first_flip(decide(on), 3),
    "slices.crossings.moved_borders": lambda on: crossings.moved_borders(decide(on), 3, [0.3, 0.6]),
    "slices.crossings.law_ratio": lambda on: [
        crossings.law_ratio(on(HIGH[:, 0]), on(LOW[:, 1]), on(LOW[:, 0]))
    ],
    "slices.fractal.box_counting": lambda on: fractal.box_counting(on(HILLS > 3)),
    "slices.fractal.border": lambda on: fractal.border(on(LABELS)),
    "slices.fractal.traced": lambda on: fractal.traced(by_sum(on)[0], (0.5, 0.5), 1.0, 3),
    "slices.fractal.difference_slopes": lambda on: fractal.difference_slopes(
        by_sum(on)[1], on(POINTS), [1, 0], [0.1, 0.01]
    ),
    "slices.fractal.noise_floor": lambda on: fractal.noise_floor(
        by_sum(on)[1], on(POINTS), repeats=2
    ),
    "slices.maps.rank_agreement": lambda on: maps.rank_agreement(
        on(HILLS), on(HILLS**2), blocks=2, draws=5
    ),
    "slices.maps.rank_gain": lambda on: maps.rank_gain(
        on(HILLS), on(GRID[..., 0]), on(HILLS**2), blocks=2, draws=5
    ),
    "slices.maps.smooth": lambda on: maps.smooth(on(HILLS), 0.1, spacing=0.1),
    "slices.maps.read": lambda on: maps.read(on(HILLS), on(POINTS)),
    "slices.paths.feature_length": lambda on: paths.feature_length(on(GRID)),
    "slices.paths.turning": lambda on: paths.turning(on(GRID**2)),
    "slices.paths.shares_on": lambda on: paths.shares_on(on(HILLS > 3), on(GRID**2)),
    "slices.plane.Slice": lambda on: (
        own(on).latents(on(POINTS)),
        own(on).resolution(torch.float32),
    ),
    "slices.plane.render": rendered,
    "slices.plane.jacobian": differentiated,
    "slices.refine.refine": lambda on: refine.refine(by_sum(on)[1], 3, coarse=1),
    "slices.relief.stretch": lambda on: relief.stretch(on(torch.eye(2).expand(3, 2, 2))),
    "slices.relief.neighbour_trace": lambda on: relief.neighbour_trace(on(GRID**2), 0.1),
    "slices.relief.surface_metric": lambda on: relief.surface_metric(on(GRID**2)),
    "slices.relief.ridges": lambda on: relief.ridges(on(HILLS)),
    "slices.relief.phases": lambda on: relief.phases(on(HILLS), contrast=1.0),
    "slices.scattered.nearest_pairs": lambda on: scattered.nearest_pairs(*flat(on)),
    "slices.scattered.local_regression": lambda on: scattered.local_regression(*flat(on)),
    "slices.timing.stands_out": lambda on: timing.stands_out(
        on(HILLS[None, ..., None]), on(LABELS)
    ),
    "slices.timing.settles": lambda on: timing.settles(on(LABELS)),
}

EXCEPTIONS |= {
    "slices.fractal.line_spread": "numbers in, numbers out",
    "slices.fractal.koch": "numbers in, numbers out",
    "slices.fractal.readings": "numbers in, numbers out",
    "slices.fractal.share_above": "takes the array of `readings` alone",
    "slices.worlds.Wall": "a control; coordinates of a slice are on the CPU",
    "slices.worlds.Globe": "a control; coordinates of a slice are on the CPU",
    "slices.fractal.check_window": "numbers in, nothing out",
    "slices.maps.overlap": "takes the arrays of `ridges` alone",
    "slices.plane.grid": "numbers in; `Slice` moves the coordinates",
    "slices.relief.centres": "takes the array of `phases` alone",
}
COORDINATES = "coordinates of a slice are handed from call to call on the CPU"
ON_CPU |= {
    "slices.borders.crossings": COORDINATES,
    "slices.borders.followed": COORDINATES,
    "slices.borders.steepest": COORDINATES,
    "slices.borders.phase_pairs": COORDINATES,
    "slices.crossings.first_flip": "places on paths are handed from call to call on the CPU",
    "slices.crossings.moved_borders": "places on paths are handed from call to call on the CPU",
    "slices.relief.surface_metric": "a map is made row by row in host memory, for its size",
}
