"""Hessians of row-wise functions, their directional derivatives carried along by a tensor class.

Of a composition of operations y = F(x), with x_i the derivative of x along coordinate i and ȳ the
derivative of the result by y, every operation adds its own curvature:

    ∇²_ij = Σ_F ⟨ȳ, D²F(x)[x_i, x_j]⟩.

Values and derivatives go forward together, one reverse pass gives all ȳ: d + 2 passes in place of
the 2d + 2 of nested reverse mode, and no double backward through a normalisation. Only operations
known to keep rows apart are taken; `Unsupported` is raised at any other.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Unsupported(Exception):
    """An operation, or a use of one, without a rule here."""


class Jet(Tensor):
    """A tensor with a batch axis first and its derivatives along d directions.

    value: (n, ...), on the graph of the point. tangents: (d, n, ...), detached. tape: of all
    jets of one point, pairs of a curved operation's output and its ȳ -> (n, d, d).
    """

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        kwargs = kwargs or {}
        if name in PLAIN:
            return func(args[0].value, *args[1:], **kwargs)
        # without gradients a potential means a constant, or a function with its own derivative
        if name not in RULES or not torch.is_grad_enabled():
            raise Unsupported(name)
        if kwargs.pop("inplace", False) or _jets([args[1:], kwargs]) and name not in BINARY:
            raise Unsupported(name)
        try:
            return RULES[name](func, *args, **kwargs)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise Unsupported(name) from error


def hessian(potential: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Hessian (n, d, d) of a row-wise potential (n, d) -> (n,), detached.

    Raises:
        Unsupported: an operation has no rule, the result is not an (n,) that follows from t, or
            its gradient by the reverse pass is not that of the forward one.
    """
    n, d = t.shape
    tape = []
    with torch.enable_grad():
        try:
            t = t.detach().requires_grad_()
        except RuntimeError as error:  # within a transform of torch.func
            raise Unsupported("transform") from error
        basis = torch.eye(d, dtype=t.dtype, device=t.device)[:, None].expand(d, n, d)
        values = potential(_jet(t, basis, tape))
        if not isinstance(values, Jet) or values.shape != (n,):
            raise Unsupported("result")
        total, outputs = values.value.sum(), [t, *(output for output, _ in tape)]
    adjoints = torch.autograd.grad(total, outputs, allow_unused=True)
    with torch.no_grad():
        _check(adjoints[0], values.tangents.mT)
        g = t.new_zeros(n, d, d)
        for adjoint, (_, curvature) in zip(adjoints[1:], tape, strict=True):
            if adjoint is not None:
                g += curvature(adjoint).to(g)
    return (g + g.mT) / 2


def _check(gradient: Tensor, forward: Tensor) -> None:
    """Two routes to the gradient differ where a part of the potential escaped the rules."""
    gap, size = (gradient - forward).abs().sum(), gradient.abs().sum()
    if not gap <= max(torch.finfo(x.dtype).eps for x in (gradient, forward)) ** 0.5 * size:
        raise Unsupported("gradient")


def _jet(value: Tensor, tangents: Tensor, tape: list) -> Jet:
    if not value.requires_grad:  # cut off, as by a cast to integers
        raise Unsupported("graph")
    jet = value.as_subclass(Jet)
    jet.value, jet.tangents, jet.tape = value, tangents.detach(), tape
    return jet


def _jets(tree) -> list[Jet]:
    """All jets in nested arguments."""
    if isinstance(tree, Jet):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree
    return sum(map(_jets, branches), []) if isinstance(tree, (dict, list, tuple)) else []


def _check_rows(value: Tensor, *jets: Jet) -> None:
    """Broadcasting against a constant or another jet must leave the batch axis first."""
    if any(len(value) != len(jet.value) or value.ndim != jet.value.ndim for jet in jets):
        raise Unsupported("broadcast over the batch")


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_i, b_j⟩ of each row of tangents (d, n, ...), (n, d, d)."""
    a, b = (c if c.ndim > 2 else c[..., None] for c in (a, b))
    return torch.einsum("inm,jnm->nij", a.flatten(2), b.flatten(2))


def _elementwise(func, x: Jet, *args, **kwargs) -> Jet:
    """y_i = f' x_i and D²y = f'' x_i x_j, the derivatives of f by reverse mode."""
    value = func(x.value, *args, **kwargs)
    if value.shape != x.value.shape:
        raise Unsupported("broadcast")
    (first,) = torch.autograd.grad(value.sum(), x.value, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x.value, retain_graph=True)
    return _curve(x, value, first.detach(), second)


def _silu(func, x: Jet) -> Jet:
    """f = x σ, f' = σ + f (1 − σ), f'' = (1 − σ) (σ + f' − σ f), faster than by reverse mode."""
    value = func(x.value)
    with torch.no_grad():
        sigma = x.value.sigmoid()
        rest = 1 - sigma
        first = torch.addcmul(sigma, value, rest)
        second = (sigma + first).addcmul_(sigma, value, value=-1).mul_(rest)
    return _curve(x, value, first, second)


def _curve(x: Jet, value: Tensor, first: Tensor, second: Tensor) -> Jet:
    """An elementwise function from its derivatives."""
    inner = x.tangents  # the tape holds no jet, which would hold the tape
    x.tape.append((value, lambda adjoint: _pairs(adjoint * second * inner, inner)))
    return _jet(value, first * inner, x.tape)


def _add(func, x, y) -> Jet:
    """Sum or difference of two jets, or of a jet and a constant."""
    jets = _jets([x, y])
    value = func(*(a.value if isinstance(a, Jet) else a for a in (x, y)))
    _check_rows(value, *jets)
    if not isinstance(y, Jet):
        tangents = x.tangents
    else:
        tangents = func(x.tangents if isinstance(x, Jet) else value.new_zeros(()), y.tangents)
    tangents = tangents.to(value.dtype).expand(-1, *value.shape)
    return _jet(value, tangents, jets[0].tape)


def _multiply(func, x, y) -> Jet:
    """D²(xy) = x_i y_j + x_j y_i for two jets; a constant scales."""
    jets = _jets([x, y])
    if len(jets) == 1:
        return _scale(func, x, y)
    value = x.value * y.value
    _check_rows(value, *jets)
    left, right = x.tangents, y.tangents.expand(-1, *value.shape)

    def curvature(adjoint: Tensor) -> Tensor:
        half = _pairs(adjoint * left, right)
        return half + half.mT

    x.tape.append((value, curvature))
    with torch.no_grad():
        return _jet(value, left * y.value + x.value * right, x.tape)


def _scale(func, x, y) -> Jet:
    """Product or quotient of a jet and a constant that leaves the batch axis first."""
    (jet,) = _jets([x, y])
    value = func(*(a.value if a is jet else a for a in (x, y)))
    _check_rows(value, jet)
    return _jet(value, func(*(a.tangents if a is jet else a for a in (x, y))), jet.tape)


def _divide(func, x, y) -> Jet:
    return x * y.reciprocal() if isinstance(y, Jet) else _scale(func, x, y)


def _matmul(func, x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    """Features times a constant matrix or vector."""
    if x.value.ndim < 2 or weight.ndim > 2:
        raise Unsupported("product over the batch")
    value = func(x.value, weight) if bias is None else func(x.value, weight, bias)
    return _jet(value, func(x.tangents, weight), x.tape)


def _layer_norm(func, x: Jet, shape, weight=None, bias=None, eps: float = 1e-5) -> Jet:
    """z = (x − mean) / s, the curvature from dot products within a row alone.

    With u_i = (x_i − mean) / s, a_i = mean(z u_i), m_ij = mean(u_i u_j): z_i = u_i − a_i z and
    D²z = (3 a_i a_j − m_ij) z − a_i u_j − a_j u_i.
    """
    if len(shape) >= x.value.ndim:
        raise Unsupported("normalisation over the batch")
    value, mean, scale = torch.native_layer_norm(x.value, shape, weight, bias, eps)
    gain, size, d = 1 if weight is None else weight.detach(), math.prod(shape), len(x.tangents)
    with torch.no_grad():
        axes = tuple(range(-len(shape), 0))
        z = (x.value - mean).mul_(scale)
        u = (x.tangents - x.tangents.mean(axes, keepdim=True)).mul_(scale)
        a = (z * u).mean(axes, keepdim=True)
        tangents = torch.addcmul(u, a, z, value=-1).mul_(gain)

    def curvature(adjoint: Tensor) -> Tensor:
        # groups of features that are normalised together, one after the other
        v, c = (adjoint * gain).reshape(-1, size), z.reshape(-1, size)
        w, b = u.reshape(d, -1, size), a.reshape(d, -1, 1)
        cross = _pairs((v * w).sum(-1, keepdim=True), b)
        g = 3 * _pairs(b, b) - _pairs(w, w) / size
        g = g * (v * c).sum(-1)[:, None, None] - cross - cross.mT
        return g.reshape(len(adjoint), -1, d, d).sum(1)

    x.tape.append((value, curvature))
    return _jet(value, tangents, x.tape)


def _logsumexp(func, x: Jet, dim, keepdim: bool = False) -> Jet:
    top = x.value.detach().amax(dim, keepdim=True)
    y = (x - top).exp().sum(dim, keepdim=True).log() + top
    return y if keepdim else y.squeeze(dim)


def _softmax(func, x: Jet, dim, _stacklevel: int = 3, dtype: None = None) -> Jet:
    if dtype is not None:
        raise Unsupported("softmax in another precision")
    return (x - x.logsumexp(dim, keepdim=True)).exp()


def _cast(func, x: Jet, *args, **kwargs) -> Jet:
    """Another dtype or device."""
    return _jet(func(x.value, *args, **kwargs), func(x.tangents, *args, **kwargs), x.tape)


def _reduce(func, x: Jet, dim, keepdim: bool = False) -> Jet:
    """Sum or mean over axes other than the batch."""
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not dims or any(k % x.value.ndim == 0 for k in dims):
        raise Unsupported("reduction over the batch")
    inner = [k % x.value.ndim + 1 for k in dims]
    return _jet(func(x.value, dim, keepdim), func(x.tangents, inner, keepdim), x.tape)


def _move(func, x, *args, **kwargs):
    """Indexing, reshaping, joining: a tag of its row goes with every element and must stay."""
    parts = list(x) if isinstance(x, (list, tuple)) else [x]
    (jet, *_), many = _jets(parts), isinstance(x, (list, tuple))
    rows = torch.arange(len(jet.value), device=jet.value.device)

    def apply(pick):
        moved = func(list(map(pick, parts)) if many else pick(x), *args, **kwargs)
        return moved if isinstance(moved, (list, tuple)) else [moved]

    for tags in apply(lambda p: rows.view(-1, *[1] * (p.ndim - 1)).expand(p.shape).contiguous()):
        if not torch.equal(tags, rows.view(-1, *[1] * (tags.ndim - 1)).expand(tags.shape)):
            raise Unsupported("rows")
    values = apply(lambda p: p.value if isinstance(p, Jet) else p)
    tangents = [
        apply(lambda p, k=k: p.tangents[k] if isinstance(p, Jet) else torch.zeros_like(p))
        for k in range(len(jet.tangents))
    ]
    jets = [_jet(v, torch.stack(w), jet.tape) for v, *w in zip(values, *tangents, strict=True)]
    return tuple(jets) if isinstance(values, tuple) else jets[0]


# What says nothing about the values.
PLAIN = {"shape", "dtype", "device", "ndim", "__len__", "size", "dim", "numel", "ones_like"}
BINARY = {"add", "sub", "mul", "div"}
ELEMENTWISE = """exp expm1 log log1p sqrt rsqrt square reciprocal pow __rpow__ sin cos sinh cosh
    tanh sigmoid gelu softplus relu elu log_sigmoid"""
MOVES = "__getitem__ reshape view flatten unsqueeze squeeze unbind split chunk cat stack"
RULES: dict[str, Callable] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(MOVES.split(), _move),
    **dict.fromkeys(("to", "float", "double"), _cast),
    **dict.fromkeys(("sum", "mean"), _reduce),
    **dict.fromkeys(("matmul", "linear"), _matmul),
    **dict.fromkeys(("add", "sub"), _add),
    "__rsub__": lambda func, x, y: _add(torch.sub, y, x),
    "silu": _silu,
    "neg": lambda func, x: _scale(torch.mul, x, -1),
    "mul": _multiply,
    "div": _divide,
    "__rdiv__": lambda func, x, y: y * x.reciprocal(),
    "layer_norm": _layer_norm,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
}
