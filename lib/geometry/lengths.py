"""Length and energy of continuous polylines under a metric, by adaptive quadrature.

A segment x_k + u v_k, 0 <= u <= 1, has speed s(u) = √(v_kᵀ g(x_k + u v_k) v_k), length ∫ s du and
energy ∫ s² du. Every segment is cut into panels, and a panel is halved until Kronrod's rule of
seven points and the Gauss rule of three inside it agree, so that no segment steps over a ridge.
Before that no panel is longer than 1 / SCAN of its curve in coordinates: what can still be missed
is a feature that falls between the nodes, narrower than about a thousandth of the curve.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.geometry.checks import Metric

SCAN = 192  # fewest panels of a curve whose length is reported
TOLERANCE = 1e-6  # of a curve's length: where the two rules differ by less, no panel is halved
HALVINGS = 40  # of one panel; the speed may have a jump or an integrable pole

# The extension of the three-point Gauss rule (Kronrod, Nodes and Weights of Quadrature Formulas,
# 1965), moved to [0, 1]; the Gauss rule sits at the odd nodes.
_HALF = np.array([0.9604912687080202834235, 0.7745966692414833770359, 0.4342437493468025580021])
_SIDE = [0.1046562260264672651938, 0.2684880898683334407286, 0.4013974147759622229051]
NODES = torch.from_numpy(0.5 + np.concatenate([-_HALF, [0], _HALF[::-1]]) / 2)
WEIGHTS = torch.tensor([*_SIDE, 0.4509165386584741423452, *_SIDE[::-1]], dtype=torch.float64) / 2
GAUSS_NODES = NODES[1::2]
GAUSS_WEIGHTS = torch.tensor([5, 8, 5], dtype=torch.float64) / 18


@dataclass(frozen=True)
class Panels:
    """Pieces left <= u <= left + width of the segments of a batch, in order along every curve."""

    segment: Tensor  # (p,), counted through the batch
    left: Tensor  # (p,)
    width: Tensor  # (p,)
    length: Tensor  # (p,), infinite where the metric is not finite and positive
    energy: Tensor  # (p,), ∫ s² du
    error: Tensor  # (p,), of the length

    def columns(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]

    def per_segment(self, values: Tensor, x: Tensor) -> Tensor:
        """Sums over the panels of each segment, (b, points - 1)."""
        total = values.new_zeros(len(x) * (x.shape[1] - 1)).index_add_(0, self.segment, values)
        return total.view(len(x), -1)


def panels(metric: Metric, x: Tensor, *, scan: int = SCAN, tolerance: float = TOLERANCE) -> Panels:
    """Cut the polylines x (b, points, d) until quadrature on every panel is good enough."""
    v = x.diff(dim=1)
    segments = v.shape[1]
    size = v.norm(dim=2)
    share = size / size.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    parts = (scan * share).ceil().clamp(min=1).long().flatten()
    segment = torch.repeat_interleave(parts)
    first = (parts.cumsum(0) - parts)[segment]
    width = (1 / parts)[segment].to(x)
    left = (torch.arange(len(segment), device=x.device) - first) * width
    kept, total, weight = [], x.new_zeros(len(x)), tolerance / max(segments, scan)
    for round in range(HALVINGS + 1):
        new = _integrate(metric, x, segment, left, width)
        curve = segment // segments
        known = total.index_add(0, curve, new.length)
        cut = (new.error > weight * known[curve]) & torch.isfinite(known[curve])
        if round == HALVINGS or not cut.any():
            kept.append(new)
            break
        kept.append(_select(new, ~cut))
        total = total.index_add(0, curve[~cut], new.length[~cut])
        segment, left, width = segment[cut].repeat(2), left[cut], width[cut] / 2
        left, width = torch.cat([left, left + width]), width.repeat(2)
    columns = [torch.cat(parts) for parts in zip(*(p.columns() for p in kept), strict=True)]
    order = columns[1].argsort()
    order = order[columns[0][order].argsort(stable=True)]
    return Panels(*(column[order] for column in columns))


def _select(found: Panels, keep: Tensor) -> Panels:
    return Panels(*(column[keep] for column in found.columns()))


def positions(x: Tensor, segment: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Points x_k + u v_k (p, nodes, d) for u (p, nodes), and the chords v_k (p, 1, d)."""
    chord = x.diff(dim=1).flatten(0, 1)[segment][:, None]
    return x[:, :-1].flatten(0, 1)[segment][:, None] + u[..., None] * chord, chord


def _squares(metric: Metric, x: Tensor, segment: Tensor, u: Tensor) -> Tensor:
    """Squared speeds at u (p, nodes); infinite where the metric is not finite and positive."""
    t, v = positions(x, segment, u)
    g = metric(t.flatten(0, 1)).unflatten(0, u.shape)
    square = torch.einsum("pni,pqi->pq", v, torch.einsum("pqij,pnj->pqi", g, v))
    return torch.where(square >= 0, square, torch.inf)


def _integrate(metric: Metric, x: Tensor, segment: Tensor, left: Tensor, width: Tensor) -> Panels:
    square = _squares(metric, x, segment, left[:, None] + width[:, None] * NODES.to(x))
    speed = square.sqrt()
    length = width * (speed @ WEIGHTS.to(x))
    error = (length - width * (speed[:, 1::2] @ GAUSS_WEIGHTS.to(x))).abs()
    energy = width * (square @ WEIGHTS.to(x))
    return Panels(segment, left, width, length, energy, torch.nan_to_num(error, nan=torch.inf))


def measure(metric: Metric, x: Tensor) -> tuple[Tensor, Tensor, Panels]:
    """Length of every segment (b, points - 1), error of every curve's length (b,), and the panels.

    Raises:
        ValueError: a squared speed that is negative or not finite (says where and what to do).
    """
    with torch.no_grad():
        found = panels(metric, x)
        bad = torch.isinf(found.length)
        if bad.any():
            _name_place(metric, x, _select(found, bad))
        length = found.per_segment(found.length, x)
        return length, found.per_segment(found.error, x).sum(1), found


def _name_place(metric: Metric, x: Tensor, found: Panels) -> None:
    u = found.left[:1, None] + found.width[:1, None] * NODES.to(x)
    t, v = positions(x, found.segment[:1], u)
    g = metric(t[0])
    square = torch.einsum("nj,qij,ni->q", v[0], g, v[0])
    at = int((~((square >= 0) & torch.isfinite(square))).nonzero()[0])
    curve = int(found.segment[0]) // (x.shape[1] - 1)
    raise ValueError(
        f"curve {curve} has squared speed {square[at].item():.3g} at t = {t[0, at].tolist()}, where "
        f"the metric is {g[at].tolist()}; a metric must be finite and positive all along the way: "
        "keep to its domain (a box, or other end points), or give floor > 0 where it is degenerate"
    )


def curve_energy(metric: Metric, curves) -> Tensor:
    """Energy N Σ_k ∫ s² du of polylines (b, points, d) of N segments, (b,); at least length²."""
    x = as_curves(curves)
    found = measure(metric, x)[2]
    return (x.shape[1] - 1) * found.per_segment(found.energy, x).sum(1)


def curve_length(metric: Metric, curves) -> Tensor:
    """Length of the continuous polylines (b, points, d), (b,), by adaptive quadrature.

    Raises:
        ValueError: not a finite (b, points >= 2, d), or a metric that is not finite and positive
            somewhere on the way (says where).
    """
    return measure(metric, as_curves(curves))[0].sum(1)


def equidistant(metric: Metric, curves, n: int) -> Tensor:
    """n points equally spaced in metric length along the polylines (b, points, d), (b, n, d).

    Ends are kept. Raises as `curve_length`, and a ValueError for n < 2.
    """
    if n < 2:
        raise ValueError(f"n = {n}; expected at least the two end points")
    x = as_curves(curves)
    found = measure(metric, x)[2]
    return spread(metric, x, found, n)


def spread(metric: Metric, x: Tensor, found: Panels, n: int) -> Tensor:
    """n points equally spaced in metric length along the curves whose panels are given."""
    segments = x.shape[1] - 1
    rows = found.segment // segments
    count = torch.bincount(rows, minlength=len(x))
    first = count.cumsum(0) - count
    along = found.length.cumsum(0)
    before = along - found.length
    start, total = before[first], along[first + count - 1] - before[first]
    share = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)[1:-1]
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
    inner = positions(x, found.segment[panel], (left + step)[:, None])[0].view(len(x), n - 2, -1)
    return torch.cat([x[:, :1], inner, x[:, -1:]], 1)


def as_curves(curves) -> Tensor:
    """Finite float64 (b, points >= 2, d), from a tensor, an array or lists."""
    x = as_double(curves)
    if x.ndim != 3 or x.shape[1] < 2 or not torch.isfinite(x).all():
        raise ValueError(
            f"curves has shape {tuple(x.shape)}, {int((~torch.isfinite(x)).sum())} numbers not "
            "finite; expected finite (b, points >= 2, d)"
        )
    return x


def as_double(values) -> Tensor:
    """A float64 tensor without a graph; tensors stay on their device."""
    if isinstance(values, Tensor):
        return values.detach().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))
