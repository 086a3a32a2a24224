"""Laws of Riemannian metrics, against exact families and second routes."""

import math
import re
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.geometry import PlainNorm as BenchmarkNorm
from benchmarks.geometry import Potential, nested_autograd_metric
from lib.geometry import metric as metrics
from lib.geometry import swaps
from lib.geometry.geodesics import geodesic
from lib.geometry.grids import from_grid, tabulate
from lib.geometry.metric import (
    fisher_metric,
    hessian_scalar_curvature,
    hessianity_defect,
    in_coordinates,
    metric_slope,
    pullback_metric,
    volume_element,
)
from lib.geometry.networks import ConvexPotential, FreePotential
from lib.geometry.potential import Fit

F64 = torch.float64


def draw(n, low=-2.0, high=2.0, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, d, dtype=F64, generator=generator)


def categorical(t):
    return torch.log1p(t.exp().sum(1))


def poisson(t):
    return t.exp().sum(1)


def sphere(t):
    return torch.diag_embed(torch.stack([torch.ones_like(t[:, 0]), t[:, 0].sin().square()], 1))


def normal_potential(t):  # of a normal law in (μ/σ², 1/2σ²)
    return t[:, 0].square() / (4 * t[:, 1]) - (2 * t[:, 1]).log() / 2


class PlainNorm(nn.Module):
    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def network(activation, norm=None, width=24):
    torch.manual_seed(3)
    norm = norm or nn.Identity
    layers = nn.Sequential(
        nn.Linear(2, width), norm(), activation(), nn.Linear(width, width), norm(), activation(),
        nn.Linear(width, 1),
    ).double()  # fmt: skip
    return lambda t: layers(t)[:, 0]


def fused_norm():
    return nn.LayerNorm(24)


def differences(function, t, h=1e-5):
    steps = h * torch.eye(t.shape[1], dtype=t.dtype)
    return torch.stack([(function(t + e) - function(t - e)) / (2 * h) for e in steps], -1)


def positive_table(shape, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    a = spread * torch.randn(*shape, 2, 2, dtype=F64, generator=generator)
    return torch.linalg.matrix_exp(a + a.mT)


def test_fisher_metric_of_a_gaussian_mean_is_the_inverse_variance():
    g = fisher_metric(lambda t: t.square().sum(1) / (2 * 0.3**2), draw(5, d=3))
    torch.testing.assert_close(g, (torch.eye(3, dtype=F64) / 0.09).expand(5, 3, 3))


def test_fisher_metric_of_a_categorical_is_its_covariance():
    t = draw(50)
    p = torch.softmax(nn.functional.pad(t, (1, 0)), 1)[:, 1:]
    exact = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(fisher_metric(categorical, t), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", [None, fused_norm, PlainNorm])
def test_fisher_metric_equals_nested_autograd_and_forward_over_reverse(norm):
    potential, t = network(nn.SiLU, norm), draw(1100)
    s = t.clone().requires_grad_()
    gradient = torch.autograd.grad(potential(s).sum(), s, create_graph=True)[0]
    rows = [torch.autograd.grad(c.sum(), s, retain_graph=True)[0] for c in gradient.unbind(1)]
    g = fisher_metric(potential, t)
    assert (g - torch.stack(rows, 1)).abs().max() < 1e-10
    slope = torch.func.grad(lambda s: potential(s).sum())
    columns = [
        torch.func.jvp(slope, (t,), (e.repeat(len(t), 1),))[1] for e in torch.eye(2, dtype=F64)
    ]
    assert (g - torch.stack(columns, 2)).abs().max() < 1e-10


def test_fisher_metric_of_a_smooth_network_equals_finite_differences():
    potential, t = network(nn.Softplus), draw(20)
    slope = torch.func.grad(lambda s: potential(s).sum())
    torch.testing.assert_close(
        fisher_metric(potential, t), differences(slope, t), rtol=1e-6, atol=1e-8
    )


def test_a_relu_network_without_normalisation_has_no_curvature():
    assert fisher_metric(network(nn.ReLU), draw(50)).abs().max() == 0


def test_fisher_metric_of_a_convex_potential_is_symmetric_positive():
    g = fisher_metric(lambda t: torch.logsumexp(t @ draw(2, d=7, seed=4), 1), draw(200))
    assert (g == g.mT).all()
    assert torch.linalg.eigvalsh(g).min() > 0


def test_fisher_metric_keeps_its_graph_on_request():
    t = draw(4)
    assert not fisher_metric(poisson, t).requires_grad
    s = t.clone().requires_grad_()
    third = torch.autograd.grad(fisher_metric(poisson, s)[:, 0, 0].sum(), s)[0]
    torch.testing.assert_close(third[:, 0], t[:, 0].exp())
    weight = torch.tensor(2.0, dtype=F64, requires_grad=True)
    fisher_metric(lambda t: weight * poisson(t), t, keep_graph=True).sum().backward()
    torch.testing.assert_close(weight.grad, t.exp().sum())


@pytest.mark.parametrize("kind", [FreePotential, ConvexPotential])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_metric_of_the_potentials_of_the_kit_is_the_hessian_of_each_row(kind, d):
    potential, t = kind([-1] * d, [2] * d, 16.0, 12, 1).double(), draw(7, -1.0, d=d)
    exact = torch.stack(
        [torch.func.hessian(lambda s: potential(s[None])[0])(row).detach() for row in t]
    )
    g = fisher_metric(potential, t)
    torch.testing.assert_close(g, exact, rtol=1e-10, atol=1e-10)
    assert not g.requires_grad and g.dtype == F64
    weights = potential.float()
    torch.testing.assert_close(fisher_metric(weights, t), exact, rtol=1e-2, atol=1e-2)


def test_the_metric_of_the_published_layers_is_that_of_the_published_loop():
    potential, t = Potential(width=32).double(), draw(1030, 0.0, 1.0)
    g = fisher_metric(potential, t)
    assert (g - nested_autograd_metric(potential, t)).abs().max() < 1e-10
    single = fisher_metric(potential.float(), t.float())
    assert single.dtype == torch.float32 and (single - g).abs().max() < 1e-4


def in_place(t):
    y = 2 * t
    y += t.exp()
    return y.prod(1)


@pytest.mark.parametrize("potential", [
    lambda t: torch.ones(len(t), dtype=F64), lambda t: t.sum(1), in_place,
    lambda t: (t.detach() * t.square()).sum(1), lambda t: torch.maximum(t.square(), t).sum(1),
], ids=["constant", "linear", "in place", "detached", "maximum"])  # fmt: skip
def test_the_metric_of_an_unusual_potential_is_what_its_graph_says(potential):
    t = draw(3, d=3)
    rows = [torch.func.hessian(lambda s: potential(s[None])[0])(row) for row in t]
    torch.testing.assert_close(fisher_metric(potential, t), torch.stack(rows))


def test_a_metric_can_be_differentiated_forward():
    t = draw(4)
    ones = torch.ones_like(t)
    slope = torch.func.jvp(lambda s: fisher_metric(poisson, s), (t,), (ones,))[1]
    torch.testing.assert_close(slope, torch.diag_embed(t.exp()))


def test_the_plain_normalisation_of_the_benchmark_is_that_of_torch():
    x = draw(6, d=5)
    torch.testing.assert_close(BenchmarkNorm(5).double()(x), nn.LayerNorm(5).double()(x))


def test_metrics_follow_the_dtype_of_tensors_and_take_arrays_as_float64():
    t = draw(3)
    assert fisher_metric(categorical, t.float()).dtype == torch.float32
    from_array = fisher_metric(categorical, t.numpy())
    torch.testing.assert_close(from_array, fisher_metric(categorical, t))
    assert fisher_metric(categorical, np.zeros((2, 2), dtype=int)).dtype == F64


@pytest.mark.parametrize("make", [
    lambda t: fisher_metric(network(nn.SiLU), t),
    lambda t: pullback_metric(lambda s: s.sin() * s, t),
    from_grid((range(5), range(6)), positive_table((5, 6))),
])  # fmt: skip
def test_metrics_do_not_depend_on_the_batch_and_leave_their_input_alone(make):
    t = draw(1030)
    before = t.clone()
    whole = make(t)
    assert torch.equal(t, before)
    pick = [0, 511, 512, 1029]
    torch.testing.assert_close(whole[pick], make(t[pick]), rtol=1e-12, atol=1e-13)


def test_pullback_of_the_sphere_embedding_is_the_round_metric():
    def embed(t):
        a, b = t.unbind(1)
        return torch.stack([a.sin() * b.cos(), a.sin() * b.sin(), a.cos()], 1)[:, None]

    t = draw(30)
    torch.testing.assert_close(pullback_metric(embed, t), sphere(t))
    for limits in ({"chunk": 7}, {"max_bytes": 1}):
        torch.testing.assert_close(pullback_metric(embed, t, **limits), sphere(t))


def test_pullbacks_of_several_results_are_those_of_each():
    t = draw(5)

    def features(s):
        return torch.stack([s.prod(1), s.sin().sum(1)], 1)

    together = pullback_metric(lambda s: (s.exp(), features(s)), t, chunk=2)
    torch.testing.assert_close(together[0], pullback_metric(torch.exp, t))
    torch.testing.assert_close(together[1], pullback_metric(features, t))


def test_pullback_of_what_cannot_be_vectorised_goes_direction_by_direction():
    def in_place(s):
        result = torch.zeros_like(s[:, :1])
        result += s.square().sum(1, keepdim=True)
        return result

    t = draw(4)
    torch.testing.assert_close(pullback_metric(in_place, t), 4 * t[:, :, None] * t[:, None])


def test_pullback_names_an_operation_without_forward_derivative():
    def attend(t):
        x = t[:, None, None].expand(-1, 1, 4, -1)
        return nn.functional.scaled_dot_product_attention(x, x, x)

    with pytest.raises(ValueError, match="forward-mode"):
        pullback_metric(attend, draw(3))


def test_the_volume_is_the_product_of_the_singular_values():
    jacobian = torch.randn(9, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(jacobian)
    g = jacobian.mT @ jacobian
    torch.testing.assert_close(volume_element(g), singular.prod(1))


def test_a_metric_transforms_as_a_tensor_under_affine_and_nonlinear_maps():
    a = torch.tensor([[1.0, 2.0], [-0.5, 0.7]], dtype=F64)
    t = draw(20)
    affine = in_coordinates(lambda s: fisher_metric(categorical, s), lambda t: t @ a.T + 0.3)
    torch.testing.assert_close(affine(t), a.T @ fisher_metric(categorical, t @ a.T + 0.3) @ a)
    torch.testing.assert_close(
        affine(t), fisher_metric(lambda t: categorical(t @ a.T + 0.3), t), rtol=1e-12, atol=1e-13
    )

    def polar(t):
        return torch.stack([t[:, 0] * t[:, 1].cos(), t[:, 0] * t[:, 1].sin()], 1)

    flat = in_coordinates(lambda s: torch.eye(2, dtype=F64).expand(len(s), 2, 2), polar)(t)
    square = torch.stack([torch.ones(20, dtype=F64), t[:, 0].square()], 1)
    torch.testing.assert_close(flat, torch.diag_embed(square))


def test_poisson_and_exponential_families_are_flat_after_a_change_of_variable():
    t = draw(20, 0.5, 2.0)
    identity = torch.eye(2, dtype=F64).expand(20, 2, 2)
    flat = in_coordinates(lambda s: fisher_metric(poisson, s), lambda t: 2 * (t / 2).log())
    torch.testing.assert_close(flat(t), identity)
    flat = in_coordinates(
        lambda s: fisher_metric(lambda u: -(-u).log().sum(1), s), lambda t: -(-t).exp()
    )
    torch.testing.assert_close(flat(t), identity)


def test_scalar_curvature_of_known_families_in_any_affine_coordinates():
    """A sphere of radius two, the flat one of independent counts, and the half-plane of normals."""
    t, a = draw(10, 0.5, 1.2), torch.tensor([[1.0, 2.0], [-0.5, 0.7]], dtype=F64)
    for potential, exact in ((categorical, 0.5), (poisson, 0.0), (normal_potential, -1.0)):
        expected = torch.full((10,), exact, dtype=F64)
        for candidate, s in (
            (potential, t),
            (lambda s, f=potential: f(s @ a.T), t @ a.inverse().T),
        ):
            r = hessian_scalar_curvature(candidate, s)
            torch.testing.assert_close(r, expected, rtol=0, atol=1e-9)


def test_the_hessianity_defect_is_zero_for_hessians_and_exact_for_a_known_metric():
    t = draw(20, 0.5, 2.0)
    assert hessianity_defect(lambda s: fisher_metric(categorical, s), t).max() < 1e-12
    assert hessianity_defect(lambda s: torch.eye(2).double().expand(len(s), 2, 2), t).max() == 0

    def leaning(t):  # only ∂_0 g_11 = 1, whose mirror ∂_1 g_01 is missing
        return torch.diag_embed(torch.stack([torch.ones_like(t[:, 0]), t[:, 0]], 1))

    half = torch.full((20,), math.sqrt(0.5), dtype=F64)
    torch.testing.assert_close(hessianity_defect(leaning, t), half)


def test_a_tabulated_metric_keeps_its_nodes_and_their_order():
    x, y = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.0]).double(), torch.linspace(-1, 2, 7).double()
    values = positive_table((5, 7), spread=0.5)
    metric = from_grid((x, y), values)
    torch.testing.assert_close(metric(torch.cartesian_prod(x, y)), values.reshape(-1, 2, 2))
    assert metric.box.tolist() == [[0, -1], [1, 2]]


def test_a_metric_is_tabulated_by_its_own_values():
    axes = torch.linspace(-1, 1, 7, dtype=F64), torch.linspace(-1, 0.5, 5, dtype=F64)
    nodes = torch.cartesian_prod(*axes)
    table = tabulate(lambda t: fisher_metric(categorical, t), axes, floor=0.01)
    expected = fisher_metric(categorical, nodes) + 0.01 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(table(nodes), expected)


@pytest.mark.parametrize(
    "metric, axes, said",
    [
        (lambda t: t.new_ones(len(t), 3, 3), 2, "tensor of points"),
        (lambda t: torch.eye(2), 2, "tensor of points"),
        (lambda t: np.ones((len(t), 2, 2)), 2, "torch.as_tensor"),
        (lambda t: torch.eye(2).expand(len(t), 2, 2), 1, "1 axes given"),
        (lambda t: torch.eye(2).expand(len(t), 2, 2), 3, "3 axes given"),
    ],
)
def test_a_table_refuses_what_is_no_metric_of_a_plane(metric, axes, said):
    with pytest.raises(ValueError, match=said):
        tabulate(metric, [torch.linspace(0, 1, 5, dtype=F64)] * axes)


@pytest.mark.parametrize(
    "at, width, warned",
    [(0.05, 0.3, False), (0.045, 0.3, False), (0.05, 0.01, True), (0.045, 0.01, True)],
)
def test_a_table_warns_of_a_ridge_between_its_nodes(at, width, warned):
    def ridged(t):  # across the first axis, between two nodes of the grid
        height = 100 * torch.exp(-(((t[:, 0] - at) / width) ** 2) / 2)
        return (1 + height)[:, None, None] * torch.eye(2, dtype=F64)

    axis = torch.linspace(-1, 1, 21, dtype=F64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tabulate(ridged, (axis, axis))
    assert bool(said) == warned
    for warning in said:  # at the centre of a cell; a step at the top is √101 long, 1 by the table
        height = 1 + 100 * math.exp(-(((0.05 - at) / width) ** 2) / 2)
        factor, where = re.search(
            r"a factor (\S+) .* at t = \[(\S+),", str(warning.message)
        ).groups()
        assert (float(factor), float(where)) == pytest.approx((height**0.5, 0.05), rel=0.01)


def test_a_tabulated_metric_is_positive_between_wild_nodes():
    axis = torch.linspace(0, 1, 12, dtype=F64)
    g = from_grid((axis, axis), positive_table((12, 12), spread=1.5))(draw(5000, 0, 1))
    smallest, largest = torch.linalg.eigvalsh(g).unbind(1)
    assert torch.isfinite(g).all()
    assert (smallest > -1e-12 * largest).all()
    assert (torch.linalg.det(g[largest < 1e5 * smallest.abs()]) > 0).all()


def test_a_tabulated_metric_converges_with_fourth_order():
    t, errors = draw(300, -1.4, 1.4), []
    for n in (17, 33):
        axis = torch.linspace(-1.5, 1.5, n, dtype=F64)
        nodes = torch.cartesian_prod(axis, axis)
        table = from_grid((axis, axis), fisher_metric(categorical, nodes).reshape(n, n, 2, 2))
        errors.append((table(t) - fisher_metric(categorical, t)).abs().max())
    assert 3.5 < torch.log2(errors[0] / errors[1]) < 5.5


@pytest.mark.parametrize("spread", [1e-4, 0.3, 2.0])
def test_the_derivatives_of_a_tabulated_metric_equal_autograd_and_differences(spread):
    axes = (torch.tensor([0.0, 0.2, 0.5, 0.6, 1.0]).double(), torch.linspace(0, 1, 6).double())
    table, t = from_grid(axes, positive_table((5, 6), spread=spread)), draw(30, 0.01, 0.99)
    by_hand = table.jet(t)
    by_autograd = metric_slope(lambda s: table(s), t)
    for ours, other in zip(by_hand[:2], by_autograd, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()))
    for k, function in ((1, table), (2, lambda s: table.jet(s)[1])):
        slope = differences(function, t, 1e-6)
        atol = 1e-6 * float(slope.abs().max())
        torch.testing.assert_close(by_hand[k], slope, rtol=1e-5, atol=atol)


def test_a_tabulated_metric_is_constant_beyond_its_border():
    axis = torch.linspace(0, 1, 6, dtype=F64)
    table = from_grid((axis, axis), positive_table((6, 6), spread=0.3))
    outside, border = torch.tensor([[1.5, 0.4]]).double(), torch.tensor([[1.0, 0.4]]).double()
    torch.testing.assert_close(table(outside), table(border))
    slope = table.jet(outside)[1]
    assert slope[..., 0].abs().max() == 0
    assert slope[..., 1].abs().max() > 0


def test_the_floor_is_added_before_the_logarithm():
    axis = torch.linspace(0, 1, 5, dtype=F64)
    flat = torch.diag(torch.tensor([1.0, 0.0])).double().expand(5, 5, 2, 2)
    with pytest.raises(ValueError, match="floor"):
        from_grid((axis, axis), flat)
    g = from_grid((axis, axis), flat, floor=0.25)(draw(9, 0, 1))
    torch.testing.assert_close(g, torch.diag(torch.tensor([1.25, 0.25])).double().expand(9, 2, 2))


def test_derivatives_of_a_frozen_or_wrongly_differentiated_metric_are_refused():
    t = draw(6, 0.5, 1.0)
    with pytest.raises(ValueError, match="detached"):
        hessianity_defect(lambda s: sphere(s).detach(), t)
    with pytest.raises(ValueError, match="finite differences"):
        hessianity_defect(lambda s: sphere(s) + sphere(2 * s).detach(), t)
    plain = network(nn.SiLU, PlainNorm)
    assert torch.isfinite(hessianity_defect(lambda s: fisher_metric(plain, s), t)).all()
    fused = network(nn.SiLU, fused_norm)
    with pytest.raises(ValueError, match="layer normalisation"):
        hessianity_defect(lambda s: fisher_metric(fused, s), t)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: fisher_metric(categorical, torch.zeros(3)), "expected \\(n, d\\)"),
    (lambda: fisher_metric(categorical, [[0.0, float("nan")]]), "not finite"),
    (lambda: fisher_metric(lambda t: t, draw(3)), "potential returned shape"),
    (lambda: pullback_metric(torch.sin, draw(3), chunk=0), "chunk = 0"),
    (lambda: from_grid((range(5), range(4)), positive_table((4, 5))), "expected \\(5, 4, 2, 2\\)"),
    (lambda: from_grid((range(3), range(4)), positive_table((3, 4))), "at least 4"),
    (lambda: from_grid(([0, 1, 1, 2], range(4)), positive_table((4, 4))), "strictly increasing"),
    (lambda: from_grid((range(4), range(4)), -positive_table((4, 4))), "t = \\[0.0, 0.0\\]"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- of a fit, in the coordinates of its labels


@cache
def gaussian_fit():
    rng = np.random.default_rng(0)
    t = rng.uniform(-3, 3, size=(8000, 2))
    return swaps.fit_swaps(t + rng.normal(size=t.shape), t), t


@cache
def poisson_fit():
    rng = np.random.default_rng(0)
    rates = rng.uniform(1, 5, size=(20_000, 2))
    return swaps.fit_swaps(rng.poisson(rates), rates, natural=torch.log), rates


def test_the_metric_of_a_fit_is_that_of_gaussian_means(recwarn):
    fit, t = gaussian_fit()
    fisher = metrics.of(fit, t)
    points = draw(20)
    found = fisher(points)
    assert found.dtype == F64 and (found - torch.eye(2)).abs().max() < 0.1
    assert torch.equal(found, fit.potential.moments(points)[2])  # natural already
    assert torch.equal(fisher(points.numpy()), found) and not recwarn


def test_the_metric_of_poisson_rates_is_one_over_the_rate():
    fit, rates = poisson_fit()
    fisher = metrics.of(fit, rates)
    points = draw(30, 1.5, 4.5)
    exact = torch.diag_embed(1 / points)
    gap = (fisher(points) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert gap.max() < 0.08 and gap.mean() < 0.04
    ends = torch.tensor([[1.5, 1.5], [4.0, 3.0]], dtype=F64)
    path = geodesic(fisher, ends[:1], ends[1:])
    straight = 2 * ends.sqrt().diff(dim=0).norm()  # flat in the roots of the rates
    assert path.converged.all() and path.length.item() == pytest.approx(straight.item(), rel=0.02)


def test_the_metric_of_a_learned_network_is_the_hessian_of_its_potential():
    t = draw(20)
    learned = ConvexPotential([-4.0, -4.0], [4.0, 4.0], 4, 8).double()
    fit = Fit(learned, nn.Identity(), torch.sinh, {})
    expected = in_coordinates(lambda s: fisher_metric(learned, s), torch.sinh)(t)
    torch.testing.assert_close(metrics.of(fit, t)(t), expected)


def test_beyond_the_labels_the_metric_warns_once_and_geodesics_stay_inside(recwarn):
    fit, t = gaussian_fit()
    fisher = metrics.of(fit, t)
    low, high = torch.as_tensor(t.min(0)), torch.as_tensor(t.max(0))
    assert torch.equal(fisher.box, torch.stack([low, high]))
    inside = geodesic(fisher, low[None], torch.stack([high[0], low[1]])[None]).points
    assert (inside >= low).all() and (inside <= high).all() and not recwarn
    with pytest.warns(UserWarning, match=r"t = \[4.0, 4.0\] lies outside the labels"):
        fisher([[0.0, 0.0], [4.0, 4.0]])
    recwarn.clear()
    fisher([[10.0, 10.0]])
    assert not recwarn
    with pytest.raises(ValueError, match="outside the box"):
        geodesic(fisher, [[0.0, 0.0]], [[4.0, 4.0]])


@pytest.mark.parametrize(("call", "message"), [
    (lambda fit, t: metrics.of(t, t), "fit is of type ndarray"),
    (lambda fit, t: metrics.of(fit, t[:0]), "t is empty"),
    (lambda fit, t: metrics.of(fit, t[:, 0]), r"t\[:, None\] for one parameter"),
    (lambda fit, t: metrics.of(fit, t[:, :1]), r"no metric at t of shape \(8000, 1\).*\(n, 2"),
    (lambda fit, t: metrics.of(fit, t)([0.0, 0.0]), r"shape \(2,\).*t\[None\] for one point"),
    (lambda fit, t: metrics.of(fit, t)([[0.0, 0.0, 0.0]]), r"this metric takes \(n, 2\)"),
    (lambda fit, t: metrics.of(fit, t)([[0.0, math.nan]]), r"t\[0\] = .* not finite"),
    (lambda fit, t: metrics.of(Fit(fit.potential, fit.network, by_numpy, {}), t),
     "natural of torch operations"),
])  # fmt: skip
def test_what_has_no_metric_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*gaussian_fit())


def by_numpy(t):
    return torch.from_numpy(np.exp(t.numpy()))
