"""A case for each public call of geometry, at the smallest sizes that say something."""

import numpy as np
import torch
from table import CASES, DESCENTS, EXCEPTIONS, ON_CPU

from lib.geometry import (
    baselines,
    boxes,
    checks,
    collocation,
    descent,
    geodesics,
    graphs,
    grids,
    lengths,
    metric,
    networks,
    posterior,
    potential,
    relaxation,
    reweighting,
    scores,
    swaps,
    theorems,
    two_step,
)
from lib.geometry import learned as from_features

RNG = np.random.default_rng(0)
BOX = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
T = torch.from_numpy(RNG.uniform(-1, 1, (60, 2)))
FEW = T[:5]
SPINS = torch.from_numpy(np.where(RNG.random((60, 4, 4)) < 0.5 + T[:, :1, None].numpy() / 4, 1, -1))
BITS = (SPINS > 0).double()
F = SPINS.double().sum((1, 2))[:, None] / 16 + 0.1 * T
ENDS = torch.tensor([[-0.8, -0.6]]).double(), torch.tensor([[0.7, 0.5]]).double()
CURVE = torch.stack([ENDS[0], torch.tensor([[0.2, -0.3]]).double(), ENDS[1]], 1)
LINE = torch.linspace(-1, 1, 9).double()[:, None].expand(-1, 2)
MAPS = torch.exp(-((boxes.cells(6)[None] * 2 - 1 - T[:, None]).square().sum(2)) * 4).view(-1, 6, 6)
MAPS = MAPS / MAPS.sum((1, 2), keepdim=True)
NET = networks.perceptron(2, 8, 1).double()


def phi(s):
    """A strictly convex potential without weights."""
    return s.square().sum(1) + s.pow(4).sum(1) / 10


def learned(on):
    """The same bent by a small network, whose weights lie where its input does."""
    network = on(NET)
    return lambda s: phi(s) + 0.1 * network(s)[:, 0]


def g(s):
    """A metric that varies, (n, 2, 2)."""
    return torch.eye(2).to(s) * (1 + s.square().sum(1))[:, None, None]


def table(on):
    """The metric on a grid."""
    axis = torch.linspace(-1, 1, 6, dtype=torch.float64)
    values = g(torch.cartesian_prod(axis, axis)).view(6, 6, 2, 2)
    return grids.from_grid([on(axis), on(axis)], on(values))


def fitted(fit, on):
    """What a fit says of new parameters and of samples."""
    return fit.potential(on(FEW)).detach(), fit.history["held_out"]


def direct(on):
    sizes = {"steps": 20, "grid": 8, "width": 6, "batch": 16}
    return potential.fit_direct(on(SPINS), on(T), box=on(BOX), **sizes)


def by_hand(on):
    """A `Likelihood` of untrained parts."""
    shape = networks.ConvexPotential([-1, -1], [1, 1], 16.0, width=6)
    network = networks.LocalStatistic(2, 2)
    own = potential.Fit(on(shape), on(network), potential.identity, {})
    counts = networks.window_counts(on(SPINS))
    return potential.Likelihood(own, counts, on(T.float()), on(BOX), 8, 16, 0)


def likelihood(on):
    run = by_hand(on)
    run.start_from_mean_slope()
    run.refuse_coarse_grid()
    run.watch(0)
    return run.swap_loss(1), run.matching_loss(1), run.likelihood_loss(1), run.best.history


def descent_of(on):
    layer = on(NET)
    run = descent.Descent(layer.parameters(), 1e-2, 5)
    run.run(lambda step: layer(on(FEW)).square().mean())
    return layer


def best(on):
    layer = on(NET)
    kept = descent.Best(layer)
    kept.watch(0, 1.0)
    torch.nn.init.zeros_(layer[0].weight)
    kept.restore()
    return layer


def trained_posterior(on):
    sizes = {"grid": 6, "bump": 0.2, "steps": 3, "batch": 4, "neighbours": 4}
    found = posterior.fit(on(SPINS), on(T), box=on(BOX), **sizes)
    return found.maps(on(SPINS[:8]), on(T[:8])), found.history


def relaxed(on):
    lifted = lengths.in_double(g, on(CURVE)[0, :1])
    run = relaxation.Relaxation(lifted, on(BOX), 20, 8)
    straight = torch.lerp(ENDS[0], ENDS[1], torch.linspace(0, 1, 7)[:, None].double())
    return run(on(straight[None]))


def tridiagonal(on):
    diagonal = 4 * torch.eye(2).double().expand(1, 3, 2, 2)
    upper, right = torch.ones(1, 2, 2, 2).double() / 4, torch.arange(6.0).double().view(1, 3, 2)
    return relaxation.solve_tridiagonal(on(diagonal.contiguous()), on(upper), on(right))


def lifted(on):
    """The metric and the curve that the parts of a length take."""
    x = on(CURVE)
    return lengths.in_double(g, x[0, :1]), x


def spread_out(on):
    own, x = lifted(on)
    found = lengths.panels(own, x, scan=8)
    share = on(torch.linspace(0, 1, 4).double())[1:-1]
    return lengths.spread(own, x, found, share), found.per_segment(found.length, x)


def segment_jet(on):
    own, x = lifted(on)
    plain = relaxation.segment_jet(own, x[0], x[0] + 1)
    return plain, relaxation.segment_jet(table(on), x[0], x[0] + 1)


def reweighted(on):
    found = reweighting.reweight(on(T + F / 4), on(T), cells=8)
    return found(on(FEW)), found.moments(on(FEW))


def swapped(on):
    found = swaps.fit_swaps(on(torch.cat([F, T], 1)), on(T), partners=4, cells=8)
    return found.potential(on(FEW)), found.statistic(on(torch.cat([F, T], 1))), found.history


def smooth(on):
    """A geodesic by few nodes, and places on it."""
    found = collocation.smooth_geodesic(phi, on(LINE), nodes=9)
    return found, found.at(np.array([0.2, 0.7]))


def descended(on):
    """What the rival finds; its seconds are left out."""
    options = {"points": 9, "steps": 25}
    return collocation.descend(phi, torch.clone, on(LINE[::2]), lambda length: True, **options)[1:]


def likelier(on):
    z = on(T + (37 * T).sin())
    first = swaps.fit_swaps(z, on(T), partners=4, cells=8)
    found = swaps.refined(first, z, on(T), box=on(BOX), grid=6)
    return found.potential(on(FEW)), found.statistic(z), found.history


def field(t):
    """A function of points that answers in NumPy, its slope falling along the line."""
    return -np.square(t).sum(1) / 4


def aligned_field(on):
    there, alignment = scores.aligned(phi, on(phi(T)), on(T))
    return there(on(FEW)), alignment


def aligned(on):
    found = potential.align_affine(on(phi(T) + T[:, 0]), on(phi(T)), on(T), scale=True)
    values = found(on(phi(T)), on(T)), found.gradient(on(T)), found.hessian(on(g(T)))
    return values, found


def convergence(on):
    statistics = torch.from_numpy(RNG_STATISTICS)
    found = theorems.posterior_convergence(
        phi, on(statistics), on(torch.zeros(2).double()), box=on(BOX), grid=6
    )
    return found.error, found.slope


RNG_STATISTICS = np.random.default_rng(1).normal(size=(3, 8, 2))
BUNDLES = SPINS[:8].view(2, 4, 4, 4).float()

CASES |= {
    "geometry.baselines.posterior_mean": lambda on: baselines.posterior_mean(
        on(SPINS), on(T), steps=4
    ),
    "geometry.baselines.vae_components": lambda on: baselines.vae_components(on(SPINS), steps=4),
    "geometry.boxes.as_box": lambda on: boxes.as_box(on(BOX)),
    "geometry.boxes.in_box": lambda on: boxes.in_box(on(T), BOX),
    "geometry.boxes.warn_uneven": lambda on: [boxes.warn_uneven(on(T), on(BOX)) is None],
    "geometry.boxes.unit_square": lambda on: boxes.unit_square(on(T), BOX),
    "geometry.boxes.mesh": lambda on: boxes.mesh(on(BOX), torch.tensor([[0.0, 1], [0.5, 1]])),
    "geometry.boxes.centres": lambda on: boxes.centres(on(BOX), 3),
    "geometry.boxes.box_grid": lambda on: boxes.box_grid(on(BOX), 3),
    "geometry.boxes.uniform_box": lambda on: boxes.uniform_box(on(BOX), 3, 0),
    "geometry.checks.as_tensor": lambda on: checks.as_tensor(on(T), "t"),
    "geometry.checks.float64": lambda on: checks.float64(on(T.float()), "t"),
    "geometry.checks.as_points": lambda on: checks.as_points(on(T)),
    "geometry.checks.require_finite": lambda on: [checks.require_finite("t", on(T)) is None],
    "geometry.checks.mapped": lambda on: checks.mapped(torch.exp, on(T)),
    "geometry.checks.trainable": lambda on: checks.trainable(NET, on(T.float()), (1,)),
    "geometry.checks.occupied": lambda on: checks.occupied(on(SPINS)),
    "geometry.checks.check_positive": lambda on: [checks.check_positive(g(on(T)), on(T)) is None],
    "geometry.collocation.SmoothPath": smooth,
    "geometry.collocation.smooth_geodesic": smooth,
    "geometry.collocation.refined_geodesic": lambda on: collocation.refined_geodesic(
        phi, on(LINE), nodes=9
    ),
    "geometry.collocation.descend": descended,
    "geometry.descent.Descent": descent_of,
    "geometry.descent.Best": best,
    "geometry.geodesics.geodesic": lambda on: (
        geodesics.geodesic(g, *on(ENDS), points=5, box=on(BOX)),
        geodesics.geodesic(table(on), *on(ENDS), points=5),
    ),
    "geometry.geodesics.mixture_geodesic": lambda on: geodesics.mixture_geodesic(
        phi, *on(ENDS), points=4
    ),
    "geometry.geodesics.frozen_geodesic": lambda on: geodesics.frozen_geodesic(
        g, *on(ENDS), points=6
    ),
    "geometry.graphs.graph_distance": lambda on: graphs.graph_distance(
        g, *on(ENDS), box=on(BOX), resolution=6, reach=2, points=5
    ),
    "geometry.grids.from_grid": lambda on: table(on).coefficients,
    "geometry.grids.tabulate": lambda on: grids.tabulate(
        g, [on(torch.linspace(-1, 1, 5).double())] * 2
    )(on(FEW)),
    "geometry.grids.GridMetric": lambda on: (table(on)(on(FEW)), table(on).jet(on(FEW))),
    "geometry.learned.components": lambda on: from_features.components(on(T))[1],
    "geometry.learned.from_posteriors": lambda on: from_features.from_posteriors(
        on(5 * T), on(T), box=on(BOX), grid=4, steps=6
    )[0](on(FEW)),
    "geometry.learned.from_noisy": lambda on: from_features.from_noisy(
        on(T.float()), on(T), 0.3, box=on(BOX), grid=6, steps=20
    )(on(FEW)),
    "geometry.learned.from_swaps": lambda on: from_features.from_swaps(
        on(T + 0.5 * (37 * T).sin()), on(T)
    )(on(FEW)),
    "geometry.lengths.Panels": lambda on: lengths.panels(*lifted(on), scan=8).curve_length(
        on(CURVE)
    ),
    "geometry.lengths.panels": lambda on: lengths.panels(*lifted(on), scan=8),
    "geometry.lengths.positions": lambda on: lengths.positions(
        on(CURVE), on(torch.tensor([0, 1])), on(torch.tensor([[0.5], [0.2]]).double())
    ),
    "geometry.lengths.measure": lambda on: lengths.measure(*lifted(on), 8),
    "geometry.lengths.in_double": lambda on: lengths.in_double(g, on(FEW), 0.1)(on(FEW)),
    "geometry.lengths.in_own_precision": lambda on: lengths.in_own_precision(
        on(NET).float(), on(FEW)
    )[0](on(FEW)),
    "geometry.lengths.curve_length": lambda on: lengths.curve_length(g, on(CURVE)),
    "geometry.lengths.equidistant": lambda on: lengths.equidistant(g, on(CURVE), 5),
    "geometry.lengths.bends": lambda on: lengths.bends(*lifted(on)),
    "geometry.lengths.excess": lambda on: lengths.excess(on(FEW)),
    "geometry.lengths.spread": spread_out,
    "geometry.lengths.as_curves": lambda on: lengths.as_curves(on(CURVE)),
    "geometry.metric.fisher_metric": lambda on: metric.fisher_metric(learned(on), on(T)),
    "geometry.metric.in_coordinates": lambda on: metric.in_coordinates(g, torch.exp)(on(FEW)),
    "geometry.metric.of": lambda on: metric.of(
        swaps.fit_swaps(on(torch.cat([F, T], 1)), on(T), partners=4, cells=8), on(T)
    )(on(FEW)),
    "geometry.metric.pullback_metric": lambda on: metric.pullback_metric(
        on(networks.perceptron(2, 4, 3).double()), on(FEW)
    ),
    "geometry.metric.volume_element": lambda on: metric.volume_element(g(on(FEW))),
    "geometry.metric.metric_slope": lambda on: metric.metric_slope(g, on(FEW)),
    "geometry.metric.check_graph": lambda on: [metric.check_graph(g(on(FEW)), on(FEW)) is None],
    "geometry.metric.hessian_scalar_curvature": lambda on: metric.hessian_scalar_curvature(
        phi, on(FEW)
    ),
    "geometry.metric.hessianity_defect": lambda on: metric.hessianity_defect(g, on(FEW)),
    "geometry.networks.PotentialNetwork": lambda on: networks.ConvexPotential.rescale(
        on(networks.ConvexPotential([-1, -1], [1, 1], 16.0, width=4)), on(FEW)
    ),
    "geometry.networks.ConvexPotential": lambda on: on(
        networks.ConvexPotential([-1, -1], [1, 1], 16.0, width=4)
    )(on(FEW)),
    "geometry.networks.FreePotential": lambda on: on(
        networks.FreePotential([-1, -1], [1, 1], 16.0, width=4)
    )(on(FEW)),
    "geometry.networks.check_windows": lambda on: [networks.check_windows(on(SPINS)) is None],
    "geometry.networks.window_counts": lambda on: networks.window_counts(on(SPINS)),
    "geometry.networks.LocalStatistic": lambda on: on(networks.LocalStatistic(2, 2, True))(
        networks.window_counts(on(SPINS))
    ),
    "geometry.networks.BundleNetwork": lambda on: on(
        networks.BundleNetwork(1, 4, width=4, periodic=True)
    )(on(BUNDLES)),
    "geometry.posterior.Posterior": trained_posterior,
    "geometry.posterior.fit": trained_posterior,
    "geometry.posterior.from_features": lambda on: posterior.from_features(
        on(torch.cat([T, F], 1)), on(T), box=on(BOX), grid=4, density=False
    ),
    "geometry.potential.identity": lambda on: potential.identity(on(T)),
    "geometry.potential.Fit": lambda on: direct(on).statistic(on(SPINS[:5])),
    "geometry.potential.fit_direct": lambda on: fitted(direct(on), on),
    "geometry.potential.Likelihood": likelihood,
    "geometry.potential.bregman": lambda on: potential.bregman(phi, on(T), on(FEW[:1])),
    "geometry.potential.Alignment": aligned,
    "geometry.potential.align_affine": aligned,
    "geometry.potential.labelled": lambda on: potential.labelled(on(SPINS), T, BOX),
    "geometry.potential.region": lambda on: potential.region(torch.exp, on(BOX)),
    "geometry.relaxation.block_size": lambda on: [relaxation.block_size(on(CURVE)) > 0],
    "geometry.relaxation.Relaxation": relaxed,
    "geometry.relaxation.segment_jet": segment_jet,
    "geometry.relaxation.solve_tridiagonal": tridiagonal,
    "geometry.reweighting.Reweighted": reweighted,
    "geometry.reweighting.reweight": reweighted,
    "geometry.scores.value_and_gradient": lambda on: scores.value_and_gradient(phi, on(T)),
    "geometry.scores.rmse": lambda on: scores.rmse(on(T), on(T + 1)),
    "geometry.scores.field_scores": lambda on: scores.field_scores(
        on((phi(T), T)), on((phi(T) + 1, T / 2))
    ),
    "geometry.scores.affine_fit": lambda on: scores.affine_fit(on(T), on(phi(T))),
    "geometry.scores.separable_quadratic": lambda on: scores.separable_quadratic(on(T), on(phi(T))),
    "geometry.scores.central_slopes": lambda on: scores.central_slopes(
        lambda t: (t**2).sum(1), on(T)
    ),
    "geometry.scores.first_below": lambda on: scores.first_below(
        on(torch.arange(4)), on(torch.tensor([3.0, 2, 1, 0])), 1.5
    ),
    "geometry.scores.metric_error": lambda on: scores.metric_error(g(on(T)), g(on(T)) * 1.1),
    "geometry.scores.aligned": aligned_field,
    "geometry.scores.slope_falls": lambda on: scores.slope_falls(field, on(LINE), 0, 0.3),
    "geometry.scores.slope_ends": lambda on: scores.slope_ends(field, on(LINE), 0),
    "geometry.swaps.LinearStatistic": lambda on: swaps.LinearStatistic(on(T[:3]))(on(T @ T[:3].T)),
    "geometry.swaps.SwapFit": swapped,
    "geometry.swaps.fit_swaps": swapped,
    "geometry.swaps.refined": likelier,
    "geometry.theorems.divergence_gap": lambda on: theorems.divergence_gap(
        phi, learned(on), box=on(BOX), grid=3
    ),
    "geometry.theorems.hessian_gap": lambda on: theorems.hessian_gap(
        phi, learned(on), box=on(BOX), grid=3
    ),
    "geometry.theorems.posterior_convergence": convergence,
    "geometry.two_step.fit_posteriors": lambda on: fitted(
        two_step.fit_posteriors(on(MAPS), on(T), box=on(BOX), steps=6, batch=16, width=6),
        on,
    ),
    "geometry.two_step.centroids": lambda on: two_step.centroids(on(MAPS), on(BOX)),
}

NUMBERS = "takes and returns plain numbers; what it makes is made on the CPU and moved"
FIT = "a part of a fit that is made on the CPU and moved, `reweight` or `fit_swaps`"
EXCEPTIONS |= {
    "geometry.lengths.as_ends": "checks what `geodesic` is given",
    "geometry.relaxation.chosen": "a part of `geodesic`",
    "geometry.boxes.cell_centres": NUMBERS,
    "geometry.boxes.cells": NUMBERS,
    "geometry.checks.require_whole": NUMBERS,
    "geometry.descent.progress": "a bar",
    "geometry.reweighting.label_cells": FIT,
    "geometry.swaps.pairs": FIT,
    "geometry.descent.subnormals_flushed": "a setting of the CPU",
    "geometry.descent.small_matrices": "a setting of the CPU",
    "geometry.networks.seeded": "a setting of the CPU's random numbers",
    "geometry.networks.perceptron": "sizes in, layers out; they run in many cases",
}
DESCENTS |= {
    "geometry.learned.from_posteriors",
    "geometry.learned.from_noisy",
    "geometry.baselines.posterior_mean",
    "geometry.baselines.vae_components",
    "geometry.posterior.Posterior",
    "geometry.posterior.fit",
    "geometry.potential.Fit",
    "geometry.potential.fit_direct",
    "geometry.two_step.fit_posteriors",
}
NEWTON = "a small dense system in float64, solved on the CPU, where the potential is asked"
ON_CPU |= {
    f"geometry.collocation.{name}": NEWTON
    for name in ("SmoothPath", "smooth_geodesic", "refined_geodesic")
}
