"""Laws of geodesics, against spaces whose distances are known."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

from lib.geometry import geodesics
from lib.geometry.geodesics import (
    frozen_geodesic,
    geodesic,
    mixture_geodesic,
)
from lib.geometry.graphs import graph_distance
from lib.geometry.grids import from_grid
from lib.geometry.lengths import (
    GAUSS_NODES,
    GAUSS_WEIGHTS,
    NODES,
    WEIGHTS,
    bends,
    curve_length,
    equidistant,
    excess,
    in_double,
)
from lib.geometry.metric import fisher_metric, in_coordinates
from lib.geometry.relaxation import solve_tridiagonal

F64 = torch.float64
ROOT = Path(__file__).parents[2]


def tensor(*rows):
    return torch.tensor(rows, dtype=F64)


def draw(n, low, high, seed=0):
    low, high = (torch.as_tensor(x, dtype=F64) for x in (low, high))
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 2, dtype=F64, generator=generator)


def subdivided(curves, parts):
    """The same polylines with every segment cut into equal parts."""
    s = torch.linspace(0, 1, parts + 1, dtype=F64)[:-1, None]
    inner = torch.lerp(curves[:, :-1, None], curves[:, 1:, None], s).flatten(1, 2)
    return torch.cat([inner, curves[:, -1:]], 1)


def midpoint_length(metric, curves):
    """The midpoint rule, right only where every segment is short: a second route to lengths."""
    middle, v = (curves[:, 1:] + curves[:, :-1]) / 2, curves.diff(dim=1)
    g = metric(middle.flatten(0, 1)).unflatten(0, v.shape[:2])
    return torch.einsum("bki,bkij,bkj->bk", v, g, v).sqrt().sum(1)


def log_partition(t):
    return torch.log1p(t.exp().sum(1))


def categorical(t):
    return fisher_metric(log_partition, t)


def categorical_distance(a, b):
    p, q = (torch.softmax(nn.functional.pad(t, (1, 0)), 1) for t in (a, b))
    return 2 * torch.acos((p * q).sqrt().sum(1))


def normal_law(t):
    scale = t[:, 1].square()
    return torch.diag_embed(torch.stack([1 / scale, 2 / scale], 1))


def normal_distance(a, b):
    gap = (a[:, 0] - b[:, 0]).square() / 2 + (a[:, 1] - b[:, 1]).square()
    return math.sqrt(2) * torch.acosh(1 + gap / (2 * a[:, 1] * b[:, 1]))


def sphere(t):
    return torch.diag_embed(torch.stack([torch.ones_like(t[:, 0]), t[:, 0].sin().square()], 1))


def sphere_distance(a, b):
    x, y = (
        torch.stack([t[:, 0].sin() * t[:, 1].cos(), t[:, 0].sin() * t[:, 1].sin(), t[:, 0].cos()])
        for t in (a, b)
    )
    return torch.acos((x * y).sum(0))


def euclidean(t):
    return torch.eye(t.shape[1], dtype=t.dtype).expand(len(t), -1, -1)


def eta(t):
    return torch.softmax(nn.functional.pad(t, (1, 0)), -1)[..., 1:]


SPACES = [
    pytest.param(categorical, categorical_distance, (-3, -3), (3, 3), id="categorical"),
    pytest.param(normal_law, normal_distance, (-1, 0.5), (1, 2.5), id="half-plane"),
    pytest.param(sphere, sphere_distance, (0.5, 0), (2.5, 2.5), id="sphere"),
]

# Ends, then Levi-Civita (exact), dual-affine and straight lengths of log(1 + e^x + e^y).
ORACLE = [
    ((-2, 1), (1, -2), 1.918140, 1.947761, 1.996720),
    ((-3, 0), (2, 2), 1.413502, 1.442793, 1.466275),
    ((-1, 2), (2, -1), 2.115698, 2.130302, 2.162847),
]
START, END = (tensor(*(row[k] for row in ORACLE)) for k in (0, 1))


def test_three_kinds_of_path_have_their_known_lengths():
    exact, dual, straight = (tensor(*(row[k] for row in ORACLE)) for k in (2, 3, 4))
    path = geodesic(categorical, START, END, points=257)
    torch.testing.assert_close(path.length, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(path.straight_length, straight, rtol=0, atol=1e-4)
    torch.testing.assert_close(path.detour, straight / exact - 1, rtol=0, atol=2e-4)
    mixture = mixture_geodesic(log_partition, START, END, points=257)
    torch.testing.assert_close(mixture.length, dual, rtol=0, atol=1e-4)
    assert path.converged.all()
    assert mixture.converged.all()


@pytest.mark.parametrize(("metric", "distance", "low", "high"), SPACES)
def test_lengths_are_exact_to_second_order_in_the_spacing(metric, distance, low, high):
    start, end = draw(20, low, high), draw(20, low, high, seed=1)
    exact, errors = distance(start, end), []
    for points in (33, 65, 128):
        path = geodesic(metric, start, end, points=points)
        assert path.converged.all()
        errors.append((path.length / exact - 1).abs().max())
    assert errors[-1] < 1e-4
    assert 1.9 < torch.log2(errors[0] / errors[1]) < 2.1


@pytest.mark.parametrize(("metric", "distance", "low", "high"), SPACES)
def test_geodesic_distance_is_a_metric_and_no_curve_is_shorter(metric, distance, low, high):
    a, b, c = (draw(12, low, high, seed) for seed in range(3))
    forth, back = geodesic(metric, a, b), geodesic(metric, b, a)
    torch.testing.assert_close(forth.length, back.length, rtol=1e-8, atol=0)
    torch.testing.assert_close(forth.points, back.points.flip(1), rtol=0, atol=1e-4)
    detour = geodesic(metric, a, c).length + geodesic(metric, c, b).length
    assert (forth.length <= detour * (1 + 1e-3)).all()
    bump = torch.linspace(0, math.pi, 64, dtype=F64).sin()[:, None] * draw(12, -0.3, 0.3)[:, None]
    assert (forth.length <= curve_length(metric, forth.points + bump)).all()
    assert (forth.length <= forth.straight_length).all()


def test_great_circles_lie_in_a_plane_through_the_centre():
    p = geodesic(categorical, START, END, points=65).points
    root = torch.softmax(nn.functional.pad(p, (1, 0)), -1).sqrt()
    normal = torch.linalg.cross(root[:, 0], root[:, -1])
    assert (root @ normal[:, :, None]).abs().max() < 1e-4


def test_a_constant_metric_has_straight_geodesics_in_three_dimensions():
    a = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    g = a @ a.T + torch.eye(3, dtype=F64)
    start, end = torch.zeros(2, 3, dtype=F64), tensor([1, 2, 3], [-1, 0, 1])
    path = geodesic(lambda t: g.expand(len(t), 3, 3), start, end, points=9)
    straight = torch.linspace(0, 1, 9, dtype=F64)[None, :, None] * end[:, None]
    torch.testing.assert_close(path.points, straight)
    torch.testing.assert_close(path.length, torch.einsum("bi,ij,bj->b", end, g, end).sqrt())


def test_length_does_not_depend_on_coordinates_direction_or_parametrisation():
    a = tensor([1.0, 2.0], [-0.5, 0.7])
    moved = in_coordinates(categorical, lambda t: t @ a.T + 0.3)
    start, end = ((x - 0.3) @ torch.linalg.inv(a).T for x in (START, END))
    there, here = geodesic(moved, start, end), geodesic(categorical, START, END)
    torch.testing.assert_close(there.length, here.length, rtol=1e-8, atol=0)
    torch.testing.assert_close(there.points @ a.T + 0.3, here.points, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        curve_length(categorical, here.points.flip(1)), curve_length(categorical, here.points)
    )
    s = torch.linspace(0, 1, 1001, dtype=F64)[None, :, None]
    curves = [START[:, None] + (END - START)[:, None] * u + (u * (1 - u)) for u in (s, s**2)]
    lengths = [curve_length(categorical, curve) for curve in curves]
    torch.testing.assert_close(*lengths, rtol=1e-5, atol=0)


def test_results_do_not_depend_on_the_batch():
    axis = torch.linspace(-3, 3, 40, dtype=F64)
    nodes = torch.cartesian_prod(axis, axis)
    table = from_grid((axis, axis), categorical(nodes).reshape(40, 40, 2, 2))
    start, end = draw(200, -3, 3), draw(200, -3, 3, seed=1)
    together, pick = geodesic(table, start, end, points=33), [0, 100, 199]
    alone = geodesic(table, start[pick], end[pick], points=33)
    torch.testing.assert_close(together.points[pick], alone.points, rtol=0, atol=1e-9)
    torch.testing.assert_close(together.length[pick], alone.length, rtol=1e-12, atol=0)


def test_a_tabulated_metric_gives_the_paths_of_the_metric_it_tabulates():
    axis = torch.linspace(-3.5, 3.5, 64, dtype=F64)
    nodes = torch.cartesian_prod(axis, axis)
    table = from_grid((axis, axis), categorical(nodes).reshape(64, 64, 2, 2))
    exact, tabulated = (geodesic(metric, START, END) for metric in (categorical, table))
    torch.testing.assert_close(tabulated.length, exact.length, rtol=1e-6, atol=0)
    torch.testing.assert_close(tabulated.points, exact.points, rtol=0, atol=1e-3)


@pytest.mark.parametrize("find", [
    lambda a, b: geodesic(categorical, a, b),
    lambda a, b: mixture_geodesic(log_partition, a, b),
    lambda a, b: frozen_geodesic(categorical, a, b),
    lambda a, b: geodesic(categorical, a, b, box=[[-3, -3], [3, 3]], global_check=16),
])  # fmt: skip
def test_coincident_ends_give_a_path_of_length_zero_and_inputs_stay_as_they_were(find):
    start, end = START.clone(), END.clone()
    end[1] = start[1]
    before = start.clone(), end.clone()
    path = find(start, end)
    assert torch.equal(start, before[0])
    assert torch.equal(end, before[1])
    assert path.converged.all()
    assert path.length[1] == 0
    assert (path.points[1] == start[1]).all()
    assert (path.length[[0, 2]] > 1).all()
    assert torch.equal(path.points[:, 0], start)
    assert torch.equal(path.points[:, -1], end)


@pytest.mark.parametrize("as_given", [Tensor.float, Tensor.tolist, Tensor.numpy])
def test_ends_of_any_kind_become_float64(as_given):
    path = geodesic(categorical, as_given(START), as_given(END))
    assert path.points.dtype == path.length.dtype == F64
    assert torch.equal(path.length, geodesic(categorical, START, END).length)


def test_a_metric_that_knows_only_float32_is_asked_in_float32():
    weight = torch.eye(2) + 0.1

    def single(t):
        return weight @ categorical(t) @ weight.T

    path = geodesic(single, START, END)
    exact = geodesic(lambda t: weight.double() @ categorical(t) @ weight.T.double(), START, END)
    assert path.converged.all()
    assert path.length.dtype == F64
    torch.testing.assert_close(path.length, exact.length, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        curve_length(single, START.float()[None]), curve_length(single, START[None])
    )
    bowl = torch.tensor([0.5, 1.0])
    mixture = mixture_geodesic(lambda t: log_partition(t) + t.square() @ bowl, START, END)
    exact = mixture_geodesic(lambda t: log_partition(t) + t.square() @ bowl.double(), START, END)
    assert mixture.converged.all()
    torch.testing.assert_close(mixture.length, exact.length, rtol=1e-5, atol=0)


def test_a_path_in_a_box_is_the_shortest_that_stays_inside():
    start, end, box = tensor([-1.0, 0.6]), tensor([1.0, 0.6]), tensor([-2.0, 0.5], [2.0, 0.8])
    free = geodesic(normal_law, start, end, points=129)
    held = geodesic(normal_law, start, end, points=129, box=box)
    assert held.converged.all()
    assert free.points[..., 1].max() > 0.9
    assert held.points[..., 1].max() == 0.8
    flip = tensor([1.0, -1.0])
    upside_down = geodesic(
        normal_law, start * flip, end * flip, points=129, box=(box * flip).sort(0).values
    )
    torch.testing.assert_close(upside_down.points, held.points * flip, rtol=0, atol=1e-8)
    # Up along a geodesic that touches the ceiling σ = 0.8, along it, and down again: with
    # x = mean / √2 the touching circle has radius 0.8, and the ceiling costs √2 dx / σ.
    reach = math.sqrt(0.8**2 - 0.6**2)
    side = normal_distance(tensor([0.0, 0.6]), tensor([math.sqrt(2) * reach, 0.8]))
    exact = 2 * side + 2 * (1 / math.sqrt(2) - reach) * math.sqrt(2) / 0.8
    torch.testing.assert_close(held.length, exact, rtol=1e-4, atol=0)


def test_the_floor_makes_a_degenerate_metric_solvable():
    def flat(t):
        return torch.diag_embed(torch.stack([torch.ones_like(t[:, 0]), 0 * t[:, 0]], 1))

    start, end = tensor([0.0, 0.0]), tensor([3.0, 4.0])
    with pytest.raises(ValueError, match="floor"):
        geodesic(flat, start, end)
    path = geodesic(flat, start, end, floor=0.25)
    torch.testing.assert_close(path.length, tensor(math.sqrt(1.25 * 9 + 0.25 * 16)))


def test_a_global_check_finds_the_shorter_way_round():
    def hills(t):
        near = torch.exp(-(t - tensor([0.5, 0.47])).square().sum(1) / (2 * 0.05**2))
        far = torch.exp(-(t - tensor([0.5, 0.75])).square().sum(1) / (2 * 0.12**2))
        return (1 + 100 * near + 100 * far)[:, None, None] * euclidean(t)

    start, end, box = tensor([0.1, 0.5]), tensor([0.9, 0.5]), [[0, 0], [1, 1]]
    local = geodesic(hills, start, end, box=box)
    checked = geodesic(hills, start, end, box=box, global_check=32)
    bound, _ = graph_distance(hills, start, end, box=box, resolution=32)
    assert local.converged.all()
    assert checked.converged.all()
    assert checked.length < 0.9 * local.length
    assert checked.length < bound < 1.1 * checked.length


def right_or_flagged(path, exact, tolerance=1e-3):
    """None is silently short, or long; returns how many are flagged."""
    off = (path.length / exact - 1).abs() > tolerance
    assert not (off & path.converged).any()
    assert (path.length > exact * (1 - 1e-6)).all()
    return int((~path.converged).sum())


def test_a_ridge_on_a_line_costs_what_it_costs():
    def metric(t):
        return (1e-3 + torch.cosh(t[:, :1] / 0.1) ** -2 / 0.01)[:, :, None]

    exact = quad(lambda x: (1e-3 + np.cosh(x / 0.1) ** -2 / 0.01) ** 0.5, -1, 0.9, epsabs=1e-10)[0]
    path = geodesic(metric, [[-1.0]], [[0.9]])
    assert path.converged.all()
    torch.testing.assert_close(path.length, tensor(exact), rtol=1e-6, atol=0)
    torch.testing.assert_close(path.straight_length, tensor(exact), rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-3, -0.7), st.floats(1, 4), st.floats(-0.9, 0.9))
def test_no_narrow_ridge_on_a_line_is_stepped_over(log_width, log_height, place):
    width, height = 10**log_width, 10**log_height

    def speed(x):
        return math.sqrt(1 + height * math.exp(-(((x - place) / width) ** 2) / 2))

    def metric(t):
        return (1 + height * torch.exp(-(((t[:, :1] - place) / width) ** 2) / 2))[:, :, None]

    cuts = [place + k * width for k in (-6, -2, 0, 2, 6) if abs(place + k * width) < 1]
    exact = quad(speed, -1, 1, points=cuts, limit=500, epsabs=1e-9)[0]
    path = geodesic(metric, [[-1.0]], [[1.0]])
    assert path.converged.all()
    torch.testing.assert_close(path.length, tensor(exact), rtol=1e-5, atol=0)


def test_a_tabulated_straight_border_is_crossed_at_its_price():
    axis = torch.linspace(0, 1, 65, dtype=F64)
    g = torch.zeros(65, 65, 2, 2, dtype=F64)
    g[..., 0, 0] = g[..., 1, 1] = 1600
    g[32:34, :, 0, 0] += (15 * 64) ** 2 / 2
    table = from_grid((axis, axis), g)
    x = torch.linspace(0.35, 0.65, 200001, dtype=F64)
    speed = table(torch.stack([x, 0 * x + 0.5], 1))[:, 0, 0].sqrt()
    across = torch.trapezoid(speed, x)
    path = geodesic(table, [[0.35, 0.4]], [[0.65, 0.5]])
    # g depends on x alone and its second component is constant: the plane is flat in (∫ speed, y).
    assert path.converged.all()
    torch.testing.assert_close(
        path.length[0], torch.hypot(across, tensor(4.0)[0]), rtol=1e-4, atol=0
    )
    straight = torch.trapezoid((speed.square() + 1600 / 9).sqrt(), x)
    torch.testing.assert_close(path.straight_length[0], straight, rtol=1e-6, atol=0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(-3, -0.7), st.floats(1, 4), st.floats(0, math.pi), st.integers(0, 99))
def test_straight_borders_of_any_width_height_and_angle(log_width, log_height, angle, seed):
    width, height = 10**log_width, 10**log_height
    n, along = (tensor([math.cos(a), math.sin(a)])[0] for a in (angle, angle + math.pi / 2))

    def rise(s):
        return height * torch.exp(-((s / width) ** 2) / 2)

    def metric(t):
        return euclidean(t) + rise((t - 0.5) @ n)[:, None, None] * torch.outer(n, n)

    start, end = draw(4, 0, 1, seed), draw(4, 0, 1, seed + 100)
    s = torch.lerp(
        (start - 0.5) @ n, (end - 0.5) @ n, torch.linspace(0, 1, 100001, dtype=F64)[:, None]
    )
    across = torch.trapezoid((1 + rise(s)).sqrt(), s, dim=0)
    exact = torch.hypot(across, (end - start) @ along)  # flat, as above
    right_or_flagged(geodesic(metric, start, end, box=[[-1, -1], [2, 2]]), exact)


def test_normal_laws_from_very_narrow_to_wide():
    path = geodesic(normal_law, [[0, 1e-3], [0, 1e-4]], [[1, 1], [1, 1]])
    assert path.converged.all()
    torch.testing.assert_close(path.length, tensor([10.3425, 13.599])[0], rtol=1e-4, atol=0)
    mean, scale = draw(40, -1, 1), 10 ** draw(40, -4, 1, seed=1)
    start, end = (torch.stack([mean[:, k], scale[:, k]], 1) for k in (0, 1))
    assert right_or_flagged(geodesic(normal_law, start, end), normal_distance(start, end)) <= 1


def test_categorical_laws_from_the_middle_to_the_edges():
    start, end = draw(40, -6, 6), draw(40, -6, 6, seed=1)
    path = geodesic(categorical, start, end)
    assert right_or_flagged(path, categorical_distance(start, end)) <= 1


def random_metric(seed, waves=4, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    a = spread * torch.randn(waves, 2, 2, dtype=F64, generator=generator)
    k = 2 * math.pi * torch.randint(-2, 3, (waves, 2), generator=generator).double()
    phase = 2 * math.pi * torch.rand(waves, dtype=F64, generator=generator)
    return lambda t: torch.matrix_exp(
        torch.einsum("nw,wij->nij", (t @ k.T + phase).cos(), a + a.mT)
    )


@pytest.mark.parametrize("seed", range(3))
def test_random_metrics_agree_with_a_fine_graph(seed):
    metric, box = random_metric(seed), [[0, 0], [1, 1]]
    start, end = draw(6, (0.05, 0.05), (0.3, 0.95), seed), draw(6, (0.7, 0.05), 0.95, seed + 50)
    bound, _ = graph_distance(metric, start, end, box=box, resolution=72, reach=4)
    path = geodesic(metric, start, end, box=box, global_check=32)
    assert path.converged.all()
    assert (path.length < bound).all()
    assert (path.length > 0.92 * bound).all()  # few directions, and a metric that is far from round
    assert (path.length <= path.straight_length).all()


def test_cutting_a_polyline_finer_leaves_its_length_within_the_error():
    metric = random_metric(4)
    curves = torch.randn(5, 12, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    length = curve_length(metric, curves)
    torch.testing.assert_close(
        curve_length(metric, subdivided(curves, 7)), length, rtol=1e-6, atol=0
    )
    fine = midpoint_length(metric, subdivided(curves, 3000))
    torch.testing.assert_close(fine, length, rtol=1e-6, atol=0)
    path = geodesic(metric, curves[:, 0], curves[:, 1], points=20)
    finer = curve_length(metric, subdivided(path.points, 16))
    assert ((finer - path.length).abs() <= path.length_error + 1e-12 * path.length).all()
    assert (path.length_error < 1e-6 * path.length).all()


def test_what_more_points_would_take_off_is_known():
    metric = random_metric(1, spread=0.5)
    start, end = draw(6, 0.05, 0.95), draw(6, 0.05, 0.95, seed=1)
    path, fine = (geodesic(metric, start, end, points=n) for n in (65, 257))
    estimate = excess(bends(in_double(metric, start), path.points)[0])
    torch.testing.assert_close(estimate, path.length - fine.length, rtol=0.4, atol=1e-4)


def test_a_path_that_too_few_points_cannot_follow_is_flagged():
    with pytest.warns(UserWarning, match="did not converge"):
        path = geodesic(normal_law, [[-1.0, 1e-3]], [[1.0, 1e-3]], points=6)
    assert not path.converged.any()
    assert (path.length > normal_distance(tensor([-1, 1e-3]), tensor([1, 1e-3]))).all()


def test_the_rule_of_every_panel_is_exact_for_its_polynomials():
    for power in range(12):
        assert abs(float((NODES**power) @ WEIGHTS) - 1 / (power + 1)) < 1e-15
        if power < 6:
            assert abs(float((GAUSS_NODES**power) @ GAUSS_WEIGHTS) - 1 / (power + 1)) < 1e-15


def test_a_graph_does_not_step_over_a_ridge_between_its_nodes():
    def metric(t):
        rise = 1e4 * torch.exp(-(((t[:, 0] - 0.513) / 0.001) ** 2) / 2)
        return euclidean(t) + rise[:, None, None] * tensor([1.0, 0.0], [0.0, 0.0])

    x = torch.linspace(0.1, 0.9, 400001, dtype=F64)
    across = torch.trapezoid((1 + 1e4 * torch.exp(-(((x - 0.513) / 0.001) ** 2) / 2)).sqrt(), x)
    start, end = tensor([0.1, 0.3], [0.1, 0.1]), tensor([0.9, 0.3], [0.9, 0.8])
    exact = torch.hypot(across, end[:, 1] - start[:, 1])
    bound, _ = graph_distance(metric, start, end, box=[[0, 0], [1, 1]], resolution=33)
    assert (bound > exact * (1 - 1e-6)).all()
    assert (bound < 1.1 * exact).all()


def test_a_path_longer_than_the_graph_has_found_has_not_converged(monkeypatch):
    def shorter(*args, **options):
        length, routes = graph_distance(*args, **options)
        return 0.9 * length, routes

    monkeypatch.setattr(geodesics, "graph_distance", shorter)
    with pytest.warns(UserWarning, match="3 of 3"):
        geodesic(categorical, START, END, box=[[-3, -3], [3, 3]], global_check=24)


def test_no_pairs_give_no_paths():
    path = geodesic(categorical, START[:0], END[:0])
    assert path.points.shape == (0, 64, 2)
    assert path.length.shape == path.converged.shape == (0,)


def test_a_graph_goes_round_an_infinite_wall():
    def barrier(t):
        shut = ((t[:, 0] - 0.5).abs() < 0.05) & (t[:, 1] < 0.8)
        return torch.where(shut, torch.inf, 1.0)[:, None, None] * euclidean(t)

    length, _ = graph_distance(
        barrier, [[0.1, 0.5]], [[0.9, 0.5]], box=[[0, 0], [1, 1]], resolution=41
    )
    exact = 2 * math.hypot(0.35, 0.3) + 0.1
    assert exact < length < 1.06 * exact


def test_graph_distance_bounds_a_known_distance_from_above():
    start, end = draw(10, (-1, 0.6), (1, 2)), draw(10, (-1, 0.6), (1, 2), seed=1)
    box = tensor([-1.5, 0.4], [1.5, 2.4])
    bound, paths = graph_distance(normal_law, start, end, box=box, resolution=40, points=200)
    exact = normal_distance(start, end)
    assert (bound > exact * (1 - 1e-4)).all()
    assert (bound < exact * 1.03 + 0.1).all()
    assert torch.equal(paths[:, 0], start)
    assert torch.equal(paths[:, -1], end)
    assert (curve_length(normal_law, paths) < bound * 1.01).all()


def test_equidistant_points_divide_the_length_evenly():
    curves = geodesic(categorical, START, END, points=40).points ** 3
    even = equidistant(categorical, curves, 9)
    assert torch.equal(even[:, 0], curves[:, 0])
    assert torch.equal(even[:, -1], curves[:, -1])
    refined = subdivided(curves, 200)
    nearest = (refined[:, None] - even[:, :, None]).norm(dim=3).argmin(2)
    along = [
        curve_length(categorical, refined[k : k + 1, : n + 1]) for k, n in enumerate(nearest[:, 4])
    ]
    torch.testing.assert_close(
        torch.cat(along), curve_length(categorical, curves) / 2, rtol=2e-3, atol=0
    )
    still = torch.ones(1, 5, 2, dtype=F64)
    assert torch.equal(equidistant(categorical, still, 3), still[:, :3])


def test_mixture_paths_are_straight_and_even_in_the_mean_parameters():
    path = mixture_geodesic(log_partition, 2 * START, 2 * END, points=40)
    mean = eta(path.points)
    s = torch.linspace(0, 1, 40, dtype=F64)[:, None]
    expected = torch.lerp(mean[:, :1], mean[:, -1:], s)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-11)


def test_a_mixture_path_crosses_a_sharp_phase_boundary():
    planes = tensor([1.0, -2.0, 0.3], [0.5, 1.0, -2.0])

    def potential(t):
        return torch.logsumexp(60 * t @ planes, 1) / 60 + 0.01 * t.square().sum(1)

    start, end = draw(40, -1, 1), draw(40, -1, 1, seed=1)
    path = mixture_geodesic(potential, start, end, points=20)
    assert path.converged.all()
    mean = torch.func.grad(lambda t: potential(t).sum())(path.points.flatten(0, 1))
    turn = mean.reshape(40, 20, 2).diff(dim=1).diff(dim=1)
    assert turn.abs().max() < 1e-9


def test_a_frozen_metric_gives_the_mixture_path_instead_of_the_geodesic():
    frozen = frozen_geodesic(categorical, START, END, smoothing=0)
    assert frozen.converged.all()
    mean = eta(frozen.points)
    chord = mean[:, -1] - mean[:, 0]
    away = mean - mean[:, :1]
    across = (away[..., 0] * chord[:, None, 1] - away[..., 1] * chord[:, None, 0]).abs()
    assert (across.amax(1) / chord.norm(dim=1)).max() < 1e-4
    dual = mixture_geodesic(log_partition, START, END, points=90).length
    torch.testing.assert_close(frozen.length, dual, rtol=1e-4, atol=0)
    assert (frozen.length > 1.005 * geodesic(categorical, START, END, points=90).length).all()


def test_a_frozen_path_is_stationary_for_the_detached_objective():
    path = frozen_geodesic(categorical, START, END, points=30, smoothing=0.1)
    x = path.points.clone().requires_grad_()
    v = x.diff(dim=1)
    middle = ((x[:, 1:] + x[:, :-1]) / 2).detach().flatten(0, 1)
    g = categorical(middle).unflatten(0, v.shape[:2])
    objective = torch.einsum("bki,bkij,bkj->", v, g, v) + 0.1 * v.diff(dim=1).square().sum()
    gradient = torch.autograd.grad(objective, x)[0][:, 1:-1]
    assert gradient.abs().max() < 1e-10


def test_frozen_paths_of_many_points_are_found_on_two_threads_too():
    """180 unknowns a path: batched, torch's LU fails there, or never returns."""
    code = """
import torch
from lib.geometry.geodesics import frozen_geodesic
torch.set_num_threads(2)
metric = lambda t: torch.diag_embed(1 + t.square())
ends = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.3, 0.1]]).double()
path = frozen_geodesic(metric, ends, ends + 1, points=92)
print(bool(path.converged.all()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True\n", done.stderr


def test_paths_that_do_not_converge_are_kept_and_flagged():
    with pytest.warns(UserWarning, match="of 3 paths did not converge"):
        path = geodesic(categorical, START, END, max_iterations=1)
    assert path.points.shape == (3, 64, 2)
    assert not path.converged.any()
    assert torch.isfinite(path.length).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12, 31])
def test_block_tridiagonal_systems_are_solved_and_their_sign_is_told(size):
    generator = torch.Generator().manual_seed(size)
    diagonal = torch.randn(5, size, 3, 3, dtype=F64, generator=generator)
    diagonal = diagonal @ diagonal.mT + 8 * torch.eye(3, dtype=F64)
    upper = torch.randn(5, size - 1, 3, 3, dtype=F64, generator=generator)
    right = torch.randn(5, size, 3, dtype=F64, generator=generator)
    diagonal[4] *= -1
    dense = torch.zeros(5, size, 3, size, 3, dtype=F64)
    for k in range(size):
        dense[:, k, :, k] = diagonal[:, k]
    for k in range(size - 1):
        dense[:, k, :, k + 1] = upper[:, k]
        dense[:, k + 1, :, k] = upper[:, k].mT
    dense = dense.reshape(5, 3 * size, 3 * size)
    solution, positive = solve_tridiagonal(diagonal, upper, right)
    assert positive.tolist() == (torch.linalg.eigvalsh(dense).amin(1) > 0).tolist()
    exact = torch.linalg.solve(dense, right.flatten(1)).view_as(right)
    torch.testing.assert_close(solution[positive], exact[positive], rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    axis = torch.linspace(-3.5, 3.5, 48, dtype=F64)
    nodes = torch.cartesian_prod(axis, axis)
    values = categorical(nodes)
    torch.testing.assert_close(categorical(nodes.cuda()).cpu(), values, rtol=1e-9, atol=1e-12)
    results = []
    for device in ("cpu", "cuda"):
        table = from_grid((axis, axis), values.reshape(48, 48, 2, 2).to(device))
        ends = START.to(device), END.to(device)
        paths = [
            geodesic(table, *ends, global_check=16),
            mixture_geodesic(log_partition, *ends),
            frozen_geodesic(table, *ends),
        ]
        results.append([part.cpu() for path in paths for part in (path.points, path.length)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-5)


def gap(t):
    """One dimension, infinite where 0.5001 < t < 0.5003."""
    inside = (t - 0.5002).abs() < 1e-4
    return torch.where(inside, torch.inf, 1 + 0 * t)[:, :, None]


def wall(t):
    return torch.where((t[:, 0] - 0.5).abs() < 0.02, torch.inf, 1.0)[:, None, None] * euclidean(t)


def hole(t):
    bad = (t - 0.5).square().sum(1) < 0.01
    return torch.where(bad[:, None, None], torch.nan, 1.0) * euclidean(t)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: geodesic(categorical, START, END[:2]), "start is \\(3, 2\\)"),
    (lambda: geodesic(categorical, START, END, points=2), "points = 2"),
    (lambda: geodesic(categorical, START, END, box=[[-1, -9], [9, 9]]), "outside the box"),
    (lambda: geodesic(categorical, START, END, box=[[-9, -9], [0, 9]]), "outside the box"),
    (lambda: geodesic(categorical, START, END, box=[[9, 9], [-9, -9]]), "lower corner"),
    (lambda: geodesic(categorical, START, END, global_check=8), "give box"),
    (lambda: geodesic(hole, tensor([0.0, 0.5]), tensor([1.0, 0.5])), "not finite at t = \\[0.4"),
    (lambda: geodesic(gap, tensor([0.0]), tensor([1.0])), r"has no length: at t = \[0.500"),
    (lambda: curve_length(gap, tensor([0.0], [1.0])[None]), "has no length: at t"),
    (lambda: geodesic(normal_law, tensor([0, -1]), tensor([1, 1.5])), "its squared speed is"),
    (lambda: geodesic(lambda t: t, START, END), r"metric returned \(1, 2\)"),
    (lambda: geodesic(lambda t: categorical(t).numpy(), START, END), "NumPy array"),
    (lambda: geodesic(torch.eye(2), START, END), r"a Tensor is no function.*metric.of\(fit, t\)"),
    (lambda: mixture_geodesic("log Z", START, END), "a str is no function"),
    (lambda: geodesic(categorical, START, END, points=10.0), "points = 10.0; give a whole number"),
    (lambda: geodesic(lambda t: -categorical(t), START, END), "eigenvalue -"),
    (lambda: geodesic(lambda t: categorical(t).detach(), START, END), "frozen"),
    (lambda: geodesic(categorical, START * torch.nan, END), "start\\[0\\]"),
    (lambda: mixture_geodesic(log_partition, START, END, points=1), "points = 1"),
    (lambda: mixture_geodesic(lambda t: -log_partition(t), START, END), "eigenvalue -"),
    (lambda: frozen_geodesic(categorical, START[:, :1], END), "expected two"),
    (lambda: curve_length(categorical, START), "curves has shape"),
    (lambda: curve_length(categorical, torch.full((1, 3, 2), torch.nan)), "6 numbers not finite"),
    (lambda: curve_length(lambda t: -categorical(t), torch.eye(2).double()[None]), "curve 0"),
    (lambda: graph_distance(wall, [[0.1, 0.5]], [[0.9, 0.5]], box=[[0, 0], [1, 1]]),
     r"no way of finite length from start\[0\] = \[0.1, 0.5\]"),
    (lambda: graph_distance(euclidean, torch.zeros(1, 3), torch.ones(1, 3),
                            box=[[0, 0, 0], [1, 1, 1]]), "give a resolution up to"),
    (lambda: equidistant(categorical, torch.zeros(1, 3, 2), 1), "n = 1"),
    (lambda: graph_distance(euclidean, START, END, box=[[-5, -5], [5, 5]], resolution=3),
     "resolution > reach"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
