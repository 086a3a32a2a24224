"""Riemannian metrics on a parameter space: Fisher, pullback, tabulated, and what is read off them.

A metric is any callable (n, d) -> (n, d, d). Hessians, and derivatives of metrics, are taken by
nested reverse mode: through the fused layer normalisation of this torch version forward over
forward is silently wrong already at second order, reverse mode from the third order on, and its
SiLU has no second forward derivative.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lib.geometry.checks import Metric, Natural, Potential, Values, as_points
from lib.geometry.grids import from_grid as from_grid
from lib.geometry.potential import Fit
from lib.geometry.reweighting import Reweighted

# Rows at once on a CPU: the activations of a 512-wide network then stay in its cache.
CPU_ROWS = 256
GPU_ROWS = 2**14

Generate = Callable[[Tensor], Tensor | tuple[Tensor, ...]]  # (n, d) -> (n, ...), row by row


def fisher_metric(potential: Potential, t: Values, *, keep_graph: bool | None = None) -> Tensor:
    """Fisher metric of an exponential family, the Hessian of its log-partition function.

    g(t) = ∇² log Z(t) (Lobashev et al. 2025, Eq. 8), exact, by nested reverse mode in blocks of
    rows that fit a cache.

    potential: log Z as a batch, (n, d) -> (n,), each row of its output from its own row of t.
    t: (n, d); arrays and integers become float64 tensors, tensors keep dtype and device.
    keep_graph: keep the result differentiable; by default when t requires a gradient.
    Returns symmetric (n, d, d), in units of 1 / t². Raises ValueError unless t is a finite (n, d)
    and the potential returns one number per row.
    """
    t = as_points(t)
    keep = t.requires_grad if keep_graph is None else keep_graph
    rows = CPU_ROWS if t.device.type == "cpu" else GPU_ROWS
    with torch.set_grad_enabled(keep and torch.is_grad_enabled()):
        return torch.cat([_hessian(potential, block) for block in t.split(rows)])


def _hessian(potential: Potential, t: Tensor) -> Tensor:
    """Hessian of one block, (n, d, d)."""

    def total(s: Tensor) -> Tensor:
        values = potential(s)
        if values.shape != s.shape[:1]:
            raise ValueError(
                f"potential returned shape {tuple(values.shape)} for t of shape {tuple(s.shape)}; "
                f"expected ({len(s)},): squeeze its last axis or sum its outputs"
            )
        return values.sum()

    g = _jacobian(torch.func.grad(total), t)
    return (g + g.mT) / 2


def _jacobian(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Jacobian (n, k, d) of a row-wise function (n, d) -> (n, k), one reverse pass per output."""
    values, pull = torch.func.vjp(function, t)
    if values.ndim != 2 or len(values) != len(t):
        raise ValueError(
            f"the map returned shape {tuple(values.shape)} for t of shape {tuple(t.shape)}; "
            "expected (n, k), row by row"
        )
    basis = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
    return torch.stack([pull(e.expand_as(values))[0] for e in basis], 1)


def in_coordinates(metric: Metric, map: Natural) -> Metric:
    """The metric in new coordinates t, where map takes t to the coordinates θ of `metric`.

    Returns the callable t ↦ J(t)ᵀ metric(map(t)) J(t), J = ∂map/∂t; map is row-wise, (n, d) -> (n,
    k).
    """

    def pulled(t: Values) -> Tensor:
        t = as_points(t)
        jacobian = _jacobian(map, t)
        return jacobian.mT @ metric(map(t)) @ jacobian

    return pulled


def of(fit: Fit, t: Values) -> Metric:
    """The Fisher metric of a fitted family in the coordinates of its labels, (n, d) -> (n, d, d).

    g(t) = J(t)ᵀ ∇² log Z(θ(t)) J(t), float64, θ = `fit.natural`, J = ∂θ/∂t.

    fit: of `swaps.fit_swaps` or `potential.fit_direct`. t: (n, d), the labels that it saw. Their
    range is the `box` of the metric, which `geodesic` keeps to. Beyond it log Z is extrapolated,
    and the metric of a fit by swaps falls to zero: the first call there warns.
    Raises ValueError for anything but a fit, for labels of another number of columns, and, when
    called, for points that are not finite (n, d) and a `natural` that cannot be differentiated.
    """
    if not isinstance(fit, Fit):
        raise ValueError(
            f"fit is of type {type(fit).__name__}; give what swaps.fit_swaps or "
            "potential.fit_direct returned, and the labels: metric.of(fit, t)"
        )
    labels, warned = as_points(t).double(), False
    if not len(labels):
        raise ValueError("t is empty; give the labels of the fit, (n, d)")
    low, high = box = torch.stack([labels.amin(0), labels.amax(0)])
    slack = 1e-3 * (high - low)  # for differences at the border
    exact = isinstance(fit.potential, Reweighted)
    hessian = partial(_covariance if exact else fisher_metric, fit.potential)
    pulled = in_coordinates(hessian, fit.natural)

    def fisher(t: Values) -> Tensor:
        nonlocal warned
        t = as_points(t).double()
        if t.shape[1] != len(low):
            raise ValueError(f"t has shape {tuple(t.shape)}; this metric takes (n, {len(low)})")
        outside = ((t < low - slack) | (t > high + slack)).any(1)
        if outside.any() and not warned:
            warned = True
            warnings.warn(
                f"t = {t[outside][0].tolist()} lies outside the labels of the fit, {box.tolist()}: "
                "the metric there is a guess; keep inside, or fit samples from there too (said "
                "once)",
                stacklevel=2,
            )
        return pulled(t)

    try:
        fisher(labels[:1])
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"this fit has no metric at t of shape {tuple(labels.shape)}: {error}; give the labels "
            "that it saw, and to the fit a natural of torch operations"
        ) from error
    fisher.box = box
    return fisher


def _covariance(potential: Reweighted, theta: Tensor) -> Tensor:
    return potential.moments(theta)[2]


def pullback_metric(
    generate: Generate,
    t: Values,
    *,
    chunk: int | None = None,
    max_bytes: int = 2**28,
) -> Tensor | tuple[Tensor, ...]:
    """Pullback metric g = JᵀJ of a deterministic generator, exact, by forward mode.

    J = ∂generate/∂t costs d forward derivatives of the batched call (no finite differences, no
    stored activations); its largest singular value is the local Lipschitz constant.

    generate: row-wise (n, d) -> (n, ...), images or features, or a tuple of both. t: (n, d).
    chunk: rows per call; by default as many as keep the outputs and their derivatives within
    `max_bytes`. A call that runs out of memory is repeated with half the rows.
    Returns positive semi-definite (n, d, d), or the tuple of them for a tuple, at the cost of one.
    Raises ValueError on t not a finite (n, d), chunk < 1, or an operation of `generate` without a
    forward-mode rule (fused attention and fused group normalisation).
    """
    t = as_points(t)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk = {chunk}; expected a number of rows >= 1")
    blocks, done, single = [], 0, True
    rows = chunk or 1
    with torch.no_grad():
        while done < len(t):
            try:
                jacobians, single = _forward_jacobian(generate, t[done : done + rows])
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                rows //= 2
                continue
            done += len(jacobians[0])
            blocks.append([jacobian.mT @ jacobian for jacobian in jacobians])
            if chunk is None and done == 1:
                row_bytes = sum(j.numel() * j.element_size() for j in jacobians)
                rows = max(1, int(max_bytes / (row_bytes * (1 + 1 / t.shape[1]))))
    if not blocks:
        return t.new_zeros(0, t.shape[1], t.shape[1])
    metrics = tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))
    return metrics[0] if single else metrics


def _forward_jacobian(generate: Generate, t: Tensor) -> tuple[tuple[Tensor, ...], bool]:
    """Jacobians (n, outputs, d) of each result, and whether there is just one, without a tuple."""
    basis = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
    basis = basis[:, None].expand(-1, len(t), -1)
    try:
        tangents = _tangents(generate, t, basis)
    except RuntimeError as error:
        # Fused group normalisation with the channels innermost complains of views instead.
        if not isinstance(error, NotImplementedError) and "view size" not in str(error):
            raise
        raise ValueError(
            f"generate has no forward-mode derivative ({str(error).splitlines()[0]}); replace the "
            "fused operation by plain ones, for a diffusion model load it differentiable"
        ) from error
    single = isinstance(tangents, Tensor)
    results = (tangents,) if single else tangents
    return tuple(r.flatten(2).permute(1, 2, 0).to(t.dtype) for r in results), single


def _tangents(generate: Generate, t: Tensor, basis: Tensor) -> Tensor | tuple[Tensor, ...]:
    """∂generate along each of d directions (d, n, d), stacked in front: (d, n, ...), or a tuple."""

    def along(v: Tensor) -> Tensor | tuple[Tensor, ...]:
        return torch.func.jvp(generate, (t,), (v,))[1]

    try:
        return torch.func.vmap(along)(basis)  # evaluates `generate` itself once for all directions
    except (NotImplementedError, torch.OutOfMemoryError):
        raise
    except RuntimeError:  # vmap refuses some operations, such as writing in place
        found = [along(v) for v in basis]
        single = isinstance(found[0], Tensor)
        return torch.stack(found) if single else tuple(map(torch.stack, zip(*found, strict=True)))


def volume_element(g: Tensor) -> Tensor:
    """Riemannian volume density √det g of metrics (n, d, d), (n,): distinguishable states per t."""
    return torch.linalg.det(g).clamp(min=0).sqrt()


def metric_slope(metric: Metric, t: Values) -> tuple[Tensor, Tensor]:
    """The metric g (n, d, d) and its derivative ∂g (n, d, d, d), ∂g[:, i, j, k] = ∂_k g_ij.

    From `metric.jet` where the metric has one (tabulated metrics), by reverse mode otherwise.
    Raises ValueError where the derivative cannot be trusted: the metric varies with t but cuts the
    graph, or, in float64, automatic and finite differences disagree.
    """
    t = as_points(t)
    if hasattr(metric, "jet"):
        return metric.jet(t)[:2]
    with torch.enable_grad():
        s = t.detach().requires_grad_(True)
        g = metric(s)
        check_graph(g, s)
        first = torch.stack([_gradient(c, s) for c in g.flatten(1).unbind(1)], 1)
    _check_slope(metric, s.detach(), first)
    return g.detach(), first.reshape(*g.shape, -1)


def check_graph(g: Tensor, t: Tensor) -> None:
    """Raise unless a metric that varies from point to point can be differentiated in t."""
    if not g.requires_grad and t.requires_grad and (g != g[:1]).any():
        raise ValueError(
            "the metric varies with t but returns a detached tensor, so a geodesic would treat it "
            "as frozen; keep its graph (no detach, no_grad or NumPy inside), or tabulate it with "
            "from_grid"
        )


def _check_slope(metric: Metric, t: Tensor, first: Tensor) -> None:
    """Raise where ∂g along the diagonal differs from a central difference at a few points."""
    if t.dtype != torch.float64 or len(t) == 0:
        return
    rows = torch.tensor(sorted({0, len(t) // 2, len(t) - 1}), device=t.device)
    h = 1e-5 * t.abs().amax().clamp(min=1e-8)
    with torch.no_grad():
        up, down = metric(t[rows] + h), metric(t[rows] - h)
    difference = ((up - down) / (2 * h)).flatten(1)
    exact = first[rows].sum(2)
    noise = 1e-9 * (up.abs() + down.abs()).amax() / h
    gap = (difference - exact).abs().amax()
    if gap > 0.02 * (difference.abs().amax() + exact.abs().amax()) + noise:
        raise ValueError(
            f"the metric's automatic derivative is off by {gap:.3g} from finite differences near "
            f"t = {t[rows[0]].tolist()}: part of it is detached, or an operation has no correct "
            "higher derivative (the fused layer normalisation of torch has two); write it with "
            "plain operations, or tabulate the metric with from_grid"
        )


def _gradient(values: Tensor, t: Tensor) -> Tensor:
    """Row-wise gradient without a graph; zero where values do not depend on t."""
    if not values.requires_grad:
        return torch.zeros_like(t)
    return torch.autograd.grad(values.sum(), t, retain_graph=True, materialize_grads=True)[0]


def hessian_scalar_curvature(potential: Potential, t: Values) -> Tensor:
    """Scalar curvature R of a Hessian metric from third derivatives alone, (n,).

    With T = ∇³ log Z the Christoffel symbols are T/2, all second derivatives of g cancel, and
    R = g^{il} g^{km} R_{iklm}, R_{iklm} = ¼ g^{np} (T_nkl T_pim − T_nkm T_pil) (Landau and
    Lifshitz, The Classical Theory of Fields, Eq. 92.1); twice the Gaussian curvature for d = 2.
    """
    g, third = metric_slope(lambda s: fisher_metric(potential, s), t)
    inverse = torch.linalg.inv(g)
    product = torch.einsum("bnp,bnkl,bpim->biklm", inverse, third, third) / 4
    return torch.einsum("biklm,bil,bkm->b", product - product.mT, inverse, inverse)


def hessianity_defect(metric: Metric, t: Values) -> Tensor:
    """How far a metric is from being a Hessian in the given coordinates, (n,), between 0 and 1.

    A metric is locally a Hessian iff ∂_k g_ij is symmetric in all indices (for d = 2:
    ∂_β g_αα = ∂_α g_αβ and ∂_α g_ββ = ∂_β g_αβ). The defect is ‖A‖ / ‖∂g‖ in the Frobenius norm,
    A_ijk = ½(∂_k g_ij − ∂_i g_kj); it is zero where ∂g vanishes.
    """
    dg = metric_slope(metric, t)[1]
    violation = ((dg - dg.transpose(1, 3)) / 2).square().flatten(1).sum(1)
    size = dg.square().flatten(1).sum(1)
    return (violation / torch.where(size > 0, size, 1)).sqrt()
