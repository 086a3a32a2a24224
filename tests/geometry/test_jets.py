"""Every rule of the forward Hessian against reverse mode, and what is left to reverse mode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from benchmarks.geometry import PlainNorm, Potential, nested_autograd_metric
from lib.geometry import metric
from lib.geometry.divergence import TangentPotential
from lib.geometry.jets import Unsupported, hessian
from lib.geometry.metric import fisher_metric
from lib.geometry.networks import ConvexPotential, FreePotential

F64 = torch.float64
N, D = 4, 3


def draw(*shape, seed=0, low=0.2, high=1.5):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, dtype=F64, generator=generator)


W, V, B = draw(D, 5, seed=1) - 0.8, draw(5, seed=2), draw(N, 2, seed=5)


def each_row(potential, t):
    """Hessian of every row alone, by torch.func."""
    return torch.stack([torch.func.hessian(lambda s: potential(s[None])[0])(row) for row in t])


ELEMENTWISE = {
    **{name: getattr(torch, name) for name in (
        "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos",
        "sinh", "cosh", "tanh", "sigmoid", "neg",
    )},
    **{name: getattr(F, name) for name in ("silu", "gelu", "softplus", "relu", "elu")},
    "logsigmoid": F.logsigmoid,
    "softplus, sharp and thresholded": lambda x: F.softplus(x - 0.8, 30.0, 5.0),
    "power": lambda x: x**3,
    "real power": lambda x: x.pow(-1.7),
    "exponential": lambda x: 2**x,
    "shift": lambda x: 1 + x - 3,
    "mirror": lambda x: 1 - x,
    "scale": lambda x: 2 * x / 3,
    "divided constant": lambda x: 2 / x,
    "product": lambda x: x * x.exp(),
    "quotient": lambda x: x / x.exp(),
    "constant tensor": lambda x: torch.ones((), dtype=F64) * x - x * 2.0,
}  # fmt: skip

GAIN, SHIFT = draw(5, seed=3), draw(5, seed=4)
ROWWISE = {
    "sum": lambda x: x.sum(1, keepdim=True) * x,
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "layer_norm": lambda x: F.layer_norm(x, (5,), GAIN, SHIFT),
    "layer_norm, plain": lambda x: F.layer_norm(x, (5,)),
    "layer_norm in groups": lambda x: F.layer_norm(
        torch.stack([x, x.exp()], 1), (5,), GAIN, SHIFT
    ).sum(1),
    "layer_norm of two axes": lambda x: F.layer_norm(
        torch.stack([x, x.exp()], 1), (2, 5), GAIN.expand(2, 5)
    ).flatten(1),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "softmax, functional": lambda x: F.softmax(x, dim=1),
    "matmul": lambda x: x @ (V[:, None] * V),
    "linear": lambda x: F.linear(x, V[:, None] * V, SHIFT),
    "index": lambda x: x[:, [1, 0, 2]] * x[..., :1],
    "reshape": lambda x: x.reshape(len(x), 1, 5).squeeze(1),
    "unsqueeze": lambda x: (x.unsqueeze(2) * x.unsqueeze(1)).view(x.shape[0], -1),
    "join": lambda x: torch.cat([x, torch.ones_like(x)], 1),
    "stack": lambda x: torch.stack([x, x.sin()], 2).flatten(1),
    "unbind": lambda x: x.unbind(1)[0][:, None] * x.chunk(2, 1)[1],
    "cast": lambda x: x.to(F64).double(),
    "broadcast": lambda x: x[:, :1] + SHIFT,
}


def head(inner, outer):
    """A potential that uses all second derivatives of `inner`, after a curved layer."""

    def potential(t):
        return (outer(inner((t @ W).sigmoid() + 0.5)).square() + 1).log().sum(1)

    return potential


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ROWWISE])
def test_every_rule_is_the_hessian_of_torch(name):
    potential, t = head({**ELEMENTWISE, **ROWWISE}[name], torch.sin), draw(N, D)
    torch.testing.assert_close(hessian(potential, t), each_row(potential, t), rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(ROWWISE)), min_size=1, max_size=2),
    st.sampled_from(sorted(ELEMENTWISE)),
    st.integers(0, 99),
)
def test_compositions_are_the_hessians_of_nested_autograd(inner, outer, seed):
    def chain(x):
        for name in inner:
            x = ROWWISE[name](x).sigmoid()
            x = x[:, :1] * V + x[:, -1:]
        return x

    potential, t = (
        head(chain, lambda x: ELEMENTWISE[outer](x.sigmoid() + 0.5)),
        draw(N, D, seed=seed),
    )
    found, exact = hessian(potential, t), metric._hessian(potential, t)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [
    lambda d: lambda t: torch.logsumexp(t, 1),
    lambda d: FreePotential([-1] * d, [2] * d, 16.0, width=12, seed=1).double(),
    lambda d: ConvexPotential([-1] * d, [2] * d, 16.0, width=12, seed=1).double(),
    lambda d: TangentPotential([-1] * d, [2] * d, 16.0, pieces=20, seed=1).double(),
])  # fmt: skip
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_potentials_of_the_kit_take_the_rules_in_any_dimension(make, d):
    potential, t = make(d), draw(7, d, low=-1.0, high=2.0)
    before = t.clone()
    exact = metric._hessian(potential, t).detach()
    torch.testing.assert_close(hessian(potential, t), exact, rtol=1e-12, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(hessian(potential, t), fisher_metric(potential, t))
    assert not fisher_metric(potential, t).requires_grad
    assert torch.equal(t, before)


@pytest.mark.parametrize("plain", [False, True])
def test_a_normalised_network_agrees_with_the_published_loop(plain):
    potential, t = Potential(plain, width=32).double(), draw(1030, 2, low=0.0, high=1.0)
    g = hessian(potential, t)
    assert (g - nested_autograd_metric(potential, t)).abs().max() < 1e-10
    torch.testing.assert_close(fisher_metric(potential, t), g, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g[5:6], hessian(potential, t[5:6]), rtol=1e-12, atol=1e-12)
    single = hessian(potential.float(), t.float())
    assert single.dtype == torch.float32
    assert (single - g).abs().max() < 1e-4


def test_weights_of_another_precision_keep_that_of_the_point():
    potential, t = FreePotential([-1, -1], [2, 2], 16.0, width=12), draw(5, 2)
    assert hessian(potential, t).dtype == F64
    torch.testing.assert_close(
        hessian(potential, t), metric._hessian(potential, t).detach(), rtol=1e-4, atol=1e-4
    )


class Straight(torch.autograd.Function):
    """A forward pass whose derivative is declared to be another."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, adjoint):
        return adjoint * ctx.saved_tensors[0].cos()


def without_gradient(t):
    with torch.no_grad():
        weight = t.exp()
    return (weight * t.square()).sum(1)


def in_place(t):
    y = 2 * t
    y += t.exp()
    return y.prod(1)


LEFT_TO_REVERSE_MODE = {
    "no rule": lambda t: t.erf().prod(1),
    "detached": lambda t: (t.detach() * t.square()).sum(1),
    "without gradient": without_gradient,
    "own derivative": lambda t: Straight.apply(t).sum(1),
    "in place": in_place,
    "in-place activation": lambda t: F.silu(2 * t, inplace=True).sum(1),
    "batch last": lambda t: (W.T @ t.T).exp().sum(0),
    "sum over the batch of a transpose": lambda t: t.mT.exp().sum(0),
    "constant potential": lambda t: torch.ones(len(t), dtype=F64),
    "maximum": lambda t: torch.maximum(t.square(), t).sum(1),
    "batch on a new axis": lambda t: t.exp()[None].sum((0, 2)),
    "einsum": lambda t: torch.einsum("ni,nj,ij->n", t, t.exp(), W[:, :D]),
    "rows joined": lambda t: torch.cat([t.exp(), t]).reshape(2, -1, D).sum((0, 2)),
}


@pytest.mark.parametrize("n", [1, D, 6])
@pytest.mark.parametrize("name", LEFT_TO_REVERSE_MODE)
def test_everything_else_is_left_to_reverse_mode_and_exact(name, n):
    potential, t = LEFT_TO_REVERSE_MODE[name], draw(n, D)
    exact = metric._hessian(potential, t)
    torch.testing.assert_close(fisher_metric(potential, t), exact, rtol=1e-12, atol=1e-12)
    if n > 1:
        with pytest.raises(Unsupported):
            hessian(potential, t)


@pytest.mark.parametrize("mix", [
    lambda t: t - t.mean(0), lambda t: t.flip(0), lambda t: t[[1, 2, 0]] * t, lambda t: t.T,
    lambda t: torch.stack(t.unbind(0), 1), lambda t: t * t[:, 0], lambda t: t[0] * t,
    lambda t: t.cumsum(0), lambda t: t[:, 0] @ t, lambda t: t.softmax(0), lambda t: t @ t,
    lambda t: t.reshape(-1)[None] * t[:, :1], lambda t: F.layer_norm(t, (D, D)),
    lambda t: t[:, 0] * draw(D, D), lambda t: t.logsumexp(0) + t, lambda t: t[t[:, 0] > 1],
])  # fmt: skip
def test_no_rule_lets_rows_mix_even_where_the_shapes_agree(mix):
    with pytest.raises(Unsupported):
        hessian(lambda t: mix(t).square().sum(1), draw(D, D))


def test_a_part_that_escapes_the_rules_is_found_by_the_second_gradient():
    script = torch.jit.trace(nn.Sequential(nn.Linear(D, 4), nn.Tanh()).double(), draw(2, D))
    t = draw(5, D)
    potential = lambda s: script(s.as_subclass(torch.Tensor)).sum(1) + s.square().sum(1)  # noqa: E731
    with pytest.raises(Unsupported):
        hessian(potential, t)


def test_graphs_and_transforms_of_the_metric_keep_their_route():
    t = draw(4, 2)
    potential = Potential(plain=True, width=8).double()
    s = t.clone().requires_grad_()
    assert fisher_metric(potential, s).requires_grad
    assert not fisher_metric(potential, s, keep_graph=False).requires_grad
    slope = torch.func.jvp(
        lambda s: fisher_metric(lambda u: u.exp().sum(1), s), (t,), (torch.ones_like(t),)
    )[1]
    torch.testing.assert_close(slope, torch.diag_embed(t.exp()))


def test_the_plain_normalisation_of_the_benchmark_is_that_of_torch():
    x = draw(6, 5)
    torch.testing.assert_close(PlainNorm(5).double()(x), nn.LayerNorm(5).double()(x))
