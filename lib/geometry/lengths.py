"""Length of continuous polylines under a metric, by adaptive quadrature.

A segment x_k + u v_k, 0 <= u <= 1, has speed s(u) = √(v_kᵀ g(x_k + u v_k) v_k) and length
∫ s du. Every segment is cut into panels, and a panel is halved until Kronrod's rule of seven
points and the Gauss rule of three inside it agree, so that no segment steps over a ridge.
Before that no panel is longer than 1 / SCAN of its curve in coordinates: what can still be missed
is a feature that falls between the nodes, narrower than about a thousandth of the curve.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.geometry.checks import Metric, Values, as_points, float64

SCAN = 192  # fewest panels of a curve whose length is reported
TOLERANCE = 1e-8  # of a curve's length: where the two rules differ by less, no panel is halved
UNSETTLED = 1e-3  # of a curve's length: error of a panel that no halving has mended
MOST = 4096  # panels at once per curve: a metric of more noise than tolerance is cut no further
PANELS = 2**15  # at once, so that a large batch stays in memory
ROWS = 2**13  # points of one call to the metric on a CPU, so that a table's cells stay in cache
HALVINGS = 40  # of one panel; the speed may have a jump or an integrable pole

# The extension of the three-point Gauss rule (Kronrod, Nodes and Weights of Quadrature Formulas,
# 1965), moved to [0, 1]; the Gauss rule sits at the odd nodes.
_HALF = np.array([0.9604912687080202834235, 0.7745966692414833770359, 0.4342437493468025580021])
_SIDE = [0.1046562260264672651938, 0.2684880898683334407286, 0.4013974147759622229051]
NODES = torch.from_numpy(0.5 + np.concatenate([-_HALF, [0], _HALF[::-1]]) / 2)
WEIGHTS = torch.tensor([*_SIDE, 0.4509165386584741423452, *_SIDE[::-1]], dtype=torch.float64) / 2
GAUSS_NODES = NODES[1::2]
GAUSS_WEIGHTS = torch.tensor([5, 8, 5], dtype=torch.float64) / 18


class Panels(NamedTuple):
    """Pieces left <= u <= left + width of the segments of a batch, in order along every curve."""

    segment: Tensor  # (p,), counted through the batch
    left: Tensor  # (p,)
    width: Tensor  # (p,)
    length: Tensor  # (p,), infinite where the metric is not finite and positive
    error: Tensor  # (p,), of the length

    def per_segment(self, values: Tensor, x: Tensor) -> Tensor:
        """Sums over the panels of each segment, (b, points - 1)."""
        total = values.new_zeros(len(x) * (x.shape[1] - 1)).index_add_(0, self.segment, values)
        return total.view(len(x), x.shape[1] - 1)

    def curve_length(self, x: Tensor) -> Tensor:
        """Length of every curve, (b,)."""
        return self.per_segment(self.length, x).sum(1)


def panels(metric: Metric, x: Tensor, *, scan: int = SCAN, tolerance: float = TOLERANCE) -> Panels:
    """Cut the polylines x (b, points, d) until quadrature on every panel is good enough."""
    v = x.diff(dim=1)
    segments = v.shape[1]
    size = v.norm(dim=2)
    share = size / size.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    parts = (scan * share).ceil().clamp(min=1).long().flatten()
    segment = torch.repeat_interleave(parts)
    first = (parts.cumsum(0) - parts)[segment]
    width = (1 / parts.to(x))[segment]
    left = (torch.arange(len(segment), device=x.device) - first) * width
    kept, total = [], x.new_zeros(len(x))
    weight = max(tolerance, 10 * metric.noise) / max(segments, scan)
    for round in range(HALVINGS + 1):
        blocks = zip(*(a.split(PANELS) for a in (segment, left, width)), strict=True)
        new = Panels(
            *map(torch.cat, zip(*(_integrate(metric, x, *b) for b in blocks), strict=True))
        )
        curve = segment // segments
        known = total.index_add(0, curve, new.length)
        cut = (new.error > weight * known[curve]) & torch.isfinite(known[curve])
        if round == HALVINGS or not cut.any() or len(segment) > MOST * len(x):
            kept.append(new)
            break
        kept.append(Panels(*(column[~cut] for column in new)))
        total = total.index_add(0, curve[~cut], new.length[~cut])
        segment, left, width = segment[cut].repeat(2), left[cut], width[cut] / 2
        left, width = torch.cat([left, left + width]), width.repeat(2)
    found = Panels(*map(torch.cat, zip(*kept, strict=True)))
    order = found.left.argsort()
    order = order[found.segment[order].argsort(stable=True)]
    return Panels(*(column[order] for column in found))


def positions(x: Tensor, segment: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Points x_k + u v_k (p, nodes, d) for u (p, nodes), and the chords v_k (p, 1, d)."""
    chord = x.diff(dim=1).flatten(0, 1)[segment][:, None]
    return x[:, :-1].flatten(0, 1)[segment][:, None] + u[..., None] * chord, chord


def _squares(metric: Metric, x: Tensor, segment: Tensor, u: Tensor) -> Tensor:
    """Squared speeds at u (p, nodes); infinite where the metric is not finite and positive."""
    t, v = positions(x, segment, u)
    t = t.flatten(0, 1)
    rows = ROWS if t.device.type == "cpu" else len(t)
    g = torch.cat([metric(part) for part in t.split(max(1, rows))]).unflatten(0, u.shape)
    square = ((g * v[:, :, None]).sum(3) * v).sum(2)
    return torch.where(square >= 0, square, torch.inf)


def _integrate(metric: Metric, x: Tensor, segment: Tensor, left: Tensor, width: Tensor) -> Panels:
    speed = _squares(metric, x, segment, left[:, None] + width[:, None] * NODES.to(x)).sqrt()
    length = width * (speed @ WEIGHTS.to(x))
    error = (length - width * (speed[:, 1::2] @ GAUSS_WEIGHTS.to(x))).abs()
    return Panels(segment, left, width, length, torch.nan_to_num(error, nan=torch.inf))


def measure(
    metric: Metric, x: Tensor, scan: int = SCAN, *, strict: bool = True
) -> tuple[Tensor, Tensor, Panels]:
    """Length and error of the length of every curve, each (b,), and the panels.

    Raises ValueError, with `strict`, where a squared speed is negative or not finite, or the length
    does not settle, as at a pole (says where and what to do).
    """
    with torch.no_grad():
        found = panels(metric, x, scan=scan)
        length, error = (found.per_segment(a, x).sum(1) for a in (found.length, found.error))
        if strict:
            total = length[found.segment // (x.shape[1] - 1)]
            bad = torch.isinf(found.length) | (found.error > UNSETTLED * total)
            if bad.any():
                _name_place(metric, x, found, int(bad.nonzero()[0]))
    return length, error, found


def _name_place(metric: Metric, x: Tensor, found: Panels, row: int) -> None:
    """Raise for the worst node of a panel."""
    segment, left, width = (a[row : row + 1] for a in (found.segment, found.left, found.width))
    t, v = positions(x, segment, left[:, None] + width[:, None] * NODES.to(x))
    g = metric(t[0])
    square = torch.einsum("j,qij,i->q", v[0, 0], g, v[0, 0])
    at = int(torch.nan_to_num(torch.where(square < 0, torch.inf, square), nan=torch.inf).argmax())
    raise ValueError(
        f"curve {int(segment[0]) // (x.shape[1] - 1)} has no length: at t = {t[0, at].tolist()} "
        f"its squared speed is {square[at].item():.3g}, the metric {g[at].tolist()}; a metric must "
        "be finite and positive all along the way: keep to its domain (a box, other end points), "
        "or give floor > 0 where it is degenerate"
    )


def in_double(metric: Metric, t: Tensor, floor: float = 0.0) -> Metric:
    """The metric g + floor · I on float64 points; one that knows only float32 is asked in float32.

    Keeps the derivatives of a metric that brings them (`jet`). t (n, d) is where it is tried.
    Raises ValueError unless it returns a tensor (n, d, d).
    """
    if isinstance(in_own_precision(metric, t)[1], np.ndarray):
        raise ValueError(
            "metric returned a NumPy array; expected a torch tensor (n, d, d): torch.as_tensor of "
            "it serves for lengths, a geodesic wants torch operations, or from_grid"
        )
    asked, g = in_own_precision(metric, t)
    expected = (len(t), t.shape[1], t.shape[1])
    if not isinstance(g, Tensor) or g.shape != expected:
        found = tuple(g.shape) if hasattr(g, "shape") else type(g).__name__
        raise ValueError(f"metric returned {found} for t of {tuple(t.shape)}; expected {expected}")

    def lifted(s: Tensor) -> Tensor:
        g = asked(s)
        return g + floor * torch.eye(s.shape[1], dtype=g.dtype, device=g.device) if floor else g

    def jet(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, first, second = (part.double() for part in metric.jet(s))
        return g + floor * torch.eye(s.shape[1], dtype=g.dtype, device=g.device), first, second

    if hasattr(metric, "jet"):
        lifted.jet = jet
    lifted.noise = torch.finfo(g.dtype if g.is_floating_point() else torch.float64).eps
    return lifted


def in_own_precision(
    function: Callable[[Tensor], Tensor], t: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function on float64 points, called in float32 where it refuses others; its value at t."""
    if not callable(function):
        raise ValueError(
            f"a {type(function).__name__} is no function of points (n, d); give a callable, such "
            "as metric.of(fit, t) for a fit, from_grid(axes, values) for a table, fit.potential "
            "for log Z"
        )
    given = torch.float64
    try:
        value = function(t)
    except RuntimeError as error:
        given = torch.float32
        try:
            value = function(t.float())
        except RuntimeError:
            raise error from None
    return lambda s: function(s.to(given)).double(), value


def curve_length(metric: Metric, curves: Values) -> Tensor:
    """Length of the continuous polylines (b, points, d), (b,), by adaptive quadrature.

    Raises ValueError unless curves are a finite (b, points >= 2, d) and the metric is finite and
    positive on the way (says where).
    """
    x = as_curves(curves)
    return measure(in_double(metric, x[:1, 0]), x)[0]


def equidistant(metric: Metric, curves: Values, n: int) -> Tensor:
    """n >= 2 points equally spaced in metric length along polylines (b, points, d), ends kept.

    Returns (b, n, d). Raises as `curve_length`.
    """
    if n < 2:
        raise ValueError(f"n = {n}; expected at least the two end points")
    x = as_curves(curves)
    metric = in_double(metric, x[:1, 0])
    share = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)[1:-1]
    return spread(metric, x, measure(metric, x)[2], share)


def bends(metric: Metric, x: Tensor) -> tuple[Tensor, Tensor]:
    """What leaving out each inner point would add to a curve, (b, points - 2); its segments."""
    triples = torch.stack([x[:, :-2], x[:, 2:]], 2).flatten(0, 1)
    with torch.no_grad():
        found = panels(metric, x, scan=1)
        parts = found.per_segment(found.length, x)
        chords = panels(metric, triples, scan=2).curve_length(triples).view(len(x), x.shape[1] - 2)
    return chords - parts[:, 1:] - parts[:, :-1], parts


def excess(bend: Tensor) -> Tensor:
    """Estimate of what more points would take off, (b,), of second order in the spacing.

    Every second point left out would add half of all bends, and that is three times the excess.
    """
    return bend.clamp(min=0).sum(1) / 6


def spread(metric: Metric, x: Tensor, found: Panels, share: Tensor) -> Tensor:
    """The ends and, between them, points at given shares (b, n) or (n,) of the curves' lengths."""
    segments = x.shape[1] - 1
    rows = found.segment // segments
    count = torch.bincount(rows, minlength=len(x))
    first = count.cumsum(0) - count
    along = found.length.cumsum(0)
    before = along - found.length
    start, total = before[first], along[first + count - 1] - before[first]
    target = start[:, None] + total[:, None] * share
    panel = torch.searchsorted(along, target.flatten()).view_as(target)
    panel = panel.clamp(first[:, None], (first + count - 1)[:, None]).flatten()
    left, width, length = found.left[panel], found.width[panel], found.length[panel]
    rest = (target.flatten() - before[panel]).clamp(min=0)
    step = width * (rest / torch.where(length > 0, length, 1)).clamp(max=1)
    for _ in range(5):
        u = left[:, None] + step[:, None] * NODES.to(x)
        u = torch.cat([u, (left + step)[:, None]], 1)
        speed = _squares(metric, x, found.segment[panel], u).sqrt()
        gap = step * (speed[:, :-1] @ WEIGHTS.to(x)) - rest
        step = step - gap / torch.where(speed[:, -1] > 0, speed[:, -1], torch.inf)
        step = step.clamp(min=0).minimum(width)
    inner = positions(x, found.segment[panel], (left + step)[:, None])[0].view(
        len(x), -1, x.shape[2]
    )
    return torch.cat([x[:, :1], inner, x[:, -1:]], 1)


def as_ends(start: Values, end: Values) -> tuple[Tensor, Tensor]:
    """End points of paths as float64, or a ValueError unless both are finite (b, d)."""
    start, end = (
        as_points(float64(t, name), name).detach() for t, name in ((start, "start"), (end, "end"))
    )
    if start.shape != end.shape:
        raise ValueError(
            f"start is {tuple(start.shape)}, end is {tuple(end.shape)}; expected two (b, d)"
        )
    return start, end


def as_curves(curves: Values) -> Tensor:
    """Finite float64 (b, points >= 2, d), from a tensor, an array or lists."""
    x = float64(curves, "curves").detach()
    if x.ndim != 3 or x.shape[1] < 2 or not torch.isfinite(x).all():
        raise ValueError(
            f"curves has shape {tuple(x.shape)}, {int((~torch.isfinite(x)).sum())} numbers not "
            "finite; expected finite (b, points >= 2, d)"
        )
    return x
