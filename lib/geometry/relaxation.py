"""Newton relaxation of polylines to minimal length, many at once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.geometry.checks import Metric
from lib.geometry.lengths import (
    GAUSS_NODES,
    GAUSS_WEIGHTS,
    bends,
    excess,
    panels,
    positions,
    spread,
)
from lib.geometry.metric import check_graph

COARSEST = 16  # segments of the first level
GRADINGS = 3  # times that points move to where a path bends
GRADED = 1e-4  # of a length: excess over the smooth curve from which they do
ROUNDING = 1e-9  # of a length: what one quadrature may differ from the next by
CPU_SEGMENTS = 2**12  # segments relaxed at once on a CPU, so that the working set stays in cache


def chosen(keep: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Row by row a where to keep it, else b."""
    return torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b)


def block_size(x: Tensor) -> int:
    """Paths handled at once."""
    return max(1, CPU_SEGMENTS // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))


@dataclass(frozen=True)
class Relaxation:
    """Shortest polylines under a metric, from given ones with the same ends."""

    metric: Metric
    box: Tensor | None
    max_iterations: int
    scan: int  # fewest panels on which the length of a curve is taken

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Polylines of as many points as x, their length as seen here, and whether it settled."""
        closed = (x[:, 0] == x[:, -1]).all(1)
        x = torch.where(closed[:, None, None], x[:, :1], x)
        length, converged, apart = x.new_zeros(len(x)), closed.clone(), (~closed).nonzero()[:, 0]
        for rows in apart.split(block_size(x)) if len(apart) else ():
            x[rows], length[rows], converged[rows] = self._refine(*self._levels(x[rows]))
        return x, length, converged

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Doubling numbers of segments, equally long at the start of every level."""
        levels = [x.shape[1] - 1]
        while levels[-1] > COARSEST:
            levels.append((levels[-1] + 1) // 2)
        for segments in reversed(levels):
            tolerance = self._rounding() if segments == levels[0] else 1e-6
            x, length, solved = self._solve(
                x, x.new_full((len(x), segments), 1 / segments), tolerance
            )
        return x, length, solved

    def _refine(self, x: Tensor, length: Tensor, solved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shorter segments where a path bends, as long as that shortens it."""
        rows = torch.arange(len(x), device=x.device)
        for _ in range(GRADINGS):
            bend, parts = bends(self.metric, x[rows])
            coarse = excess(bend) > GRADED * length[rows]
            rows = rows[coarse]
            if len(rows) == 0:
                break
            share = _graded(bend[coarse], parts[coarse])
            y, new, settled = self._solve(x[rows], share, self._rounding())
            keep = settled & (new < length[rows])
            rows = rows[keep]
            x[rows], length[rows], solved[rows] = y[keep], new[keep], settled[keep]
        return x, length, solved

    def _rounding(self) -> float:
        """Relative difference of objectives that means nothing."""
        return max(ROUNDING, 10 * self.metric.noise)

    def _solve(self, x: Tensor, share: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Newton from the curves x cut into segments of the given shares of the length."""
        with torch.no_grad():
            inner = share.cumsum(1)[:, :-1]
            x = spread(self.metric, x, panels(self.metric, x, scan=self.scan), inner)
        return self._newton(x, share, tolerance)

    def _newton(self, x: Tensor, share: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Damped projected Newton on every path by itself; converged paths leave the batch."""
        result, length = x.clone(), x.new_zeros(len(x))
        converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        live, damping = torch.arange(len(x), device=x.device), x.new_zeros(len(x))
        system = _system(self.metric, x, share, self.scan)
        for _ in range(self.max_iterations):
            step, solved = _step(system, x, self.box, damping)
            trial = self._moved(x, step)
            slope = (system.gradient * (trial - x)[:, 1:-1]).sum((1, 2))
            small = -slope * (1 + damping) <= tolerance * system.value
            finished = solved & small & (slope <= 0)
            result[live] = chosen(finished, trial, x)
            length[live], converged[live] = system.length, finished
            if finished.all():
                break
            go = ~finished
            live, x, trial, solved, slope = (a[go] for a in (live, x, trial, solved, slope))
            damping, system, share = damping[go], system.rows(go), share[go]
            new = _system(self.metric, trial, share, self.scan)
            accept = solved & (new.value <= (1 + self._rounding()) * system.value + 1e-4 * slope)
            x = chosen(accept, trial, x)
            system = new.where(accept, system)
            damping = torch.where(accept, damping / 10, (10 * damping).clamp(min=1e-2))
            damping = torch.where(damping < 1e-3, 0.0, damping)
            result[live], length[live] = x, system.length
        return result, length, converged

    def _moved(self, x: Tensor, step: Tensor) -> Tensor:
        trial = torch.cat([x[:, :1], x[:, 1:-1] + step, x[:, -1:]], 1)
        return trial if self.box is None else trial.clamp(self.box[0], self.box[1])


def _graded(bend: Tensor, parts: Tensor) -> Tensor:
    """Shares of the length (b, n) of segments that are shorter where a polyline bends.

    A chord of length δ exceeds a curve of curvature κ by about κ² δ³ / 24, so the least excess of
    n chords has δ ∝ κ^(−2/3): the cube roots of the excess at the corners are to be equal. Half of
    the points follow that rule, the others the length.
    """
    n, total = parts.shape[1], parts.sum(1, keepdim=True)
    mass = torch.nn.functional.pad(bend.clamp(min=0) ** (1 / 3), (1, 1))
    mass = (mass[:, 1:] + mass[:, :-1]) / 2
    whole = mass.sum(1, keepdim=True)
    density = (torch.where(whole > 0, mass / whole, parts / total) + parts / total) / 2
    at = torch.nn.functional.pad((parts / total).cumsum(1), (1, 0))
    count = torch.nn.functional.pad(density.cumsum(1), (1, 0))
    wanted = torch.linspace(0, 1, n + 1, dtype=parts.dtype, device=parts.device)
    k = torch.searchsorted(count, wanted.expand(len(parts), -1).contiguous(), right=True) - 1
    k = k.clamp(0, n - 1)
    inside = (wanted - count.gather(1, k)) / density.gather(1, k)
    place = at.gather(1, k) + inside.clamp(0, 1) * (at.gather(1, k + 1) - at.gather(1, k))
    return place.diff(dim=1)


class _System(NamedTuple):
    """Objective, gradient and the two block-tridiagonal matrices of a batch of paths."""

    value: Tensor  # (b,)
    length: Tensor  # (b,)
    gradient: Tensor  # (b, k, d), interior points
    diagonal: Tensor  # (b, k, d, d), Hessian
    upper: Tensor  # (b, k - 1, d, d)
    sobolev: Tensor  # (b, k, d, d), the same with the metric held fixed: always positive
    sobolev_upper: Tensor

    def rows(self, index: Tensor) -> "_System":
        return _System(*(part[index] for part in self))

    def where(self, keep: Tensor, other: "_System") -> "_System":
        return _System(*(chosen(keep, *pair) for pair in zip(self, other, strict=True)))


def _step(system: _System, x: Tensor, box: Tensor | None, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Newton step of the damped Hessian on the free coordinates, and whether it was positive."""
    weight = damping[:, None, None, None]
    diagonal = system.diagonal + weight * system.sobolev
    upper = system.upper + weight * system.sobolev_upper
    gradient = system.gradient
    if box is not None:
        inner = x[:, 1:-1]
        held = ((inner <= box[0]) & (gradient > 0)) | ((inner >= box[1]) & (gradient < 0))
        free = (~held).to(x.dtype)
        gradient = gradient * free
        diagonal = diagonal * free[..., :, None] * free[..., None, :] + torch.diag_embed(1 - free)
        upper = upper * free[:, :-1, :, None] * free[:, 1:, None, :]
    step, solved = solve_tridiagonal(diagonal, upper, -gradient)
    solved = solved & torch.isfinite(step).flatten(1).all(1)
    return torch.where(solved[:, None, None], step, 0.0), solved


def _system(metric: Metric, x: Tensor, share: Tensor, scan: int) -> _System:
    """Σ_k L_k² / w_k, which is least for the shortest polyline, its segments long in shares w_k.

    Unlike Σ_k L_k it holds the points apart along the curve; unlike the energy it lets the speed
    vary within a segment, so a ridge needs no more points than the bend of the curve.
    """
    b, n = x.shape[0], x.shape[1] - 1
    with torch.no_grad():
        found = panels(metric, x, scan=scan)
    length = found.per_segment(found.length, x)
    u = found.left[:, None] + found.width[:, None] * GAUSS_NODES.to(x)
    t, v = positions(x, found.segment, u)
    parts = segment_jet(metric, t.flatten(0, 1), v.expand_as(t).flatten(0, 1))
    parts = [part.unflatten(0, u.shape) for part in parts]
    jet = _length_jet(parts, u - 0.5, found.width[:, None] * GAUSS_WEIGHTS.to(x))
    sums = (a.new_zeros(b * n, *a.shape[1:]).index_add_(0, found.segment, a) for a in jet)
    l_m, l_v, l_mm, l_mv, l_vv, g = (a.unflatten(0, (b, n)) for a in sums)
    scale = (2 * length / share)[..., None]
    f_m, f_v, scale, pairs = scale * l_m, scale * l_v, scale[..., None], 2 / share[..., None, None]
    f_mm, f_mv, f_vv = (
        scale * second + pairs * left[..., :, None] * right[..., None, :]
        for second, left, right in ((l_mm, l_m, l_m), (l_mv, l_m, l_v), (l_vv, l_v, l_v))
    )
    g = scale * g
    bend, cross, skew = f_mm / 4 + f_vv, (f_mv + f_mv.mT) / 2, (f_mv - f_mv.mT) / 2
    return _System(
        (length.square() / share).sum(1),
        length.sum(1),
        (f_m / 2 + f_v)[:, :-1] + (f_m / 2 - f_v)[:, 1:],
        (bend + cross)[:, :-1] + (bend - cross)[:, 1:],
        (f_mm / 4 + skew - f_vv)[:, 1:-1],
        g[:, :-1] + g[:, 1:],
        -g[:, 1:-1],
    )


def _length_jet(parts: list[Tensor], s: Tensor, weight: Tensor) -> list[Tensor]:
    """Sums over nodes (p, q) of the speed's derivatives in the middle M and the chord V.

    A node is M + s V, its squared speed e(M + s V, V); the last sum is g / speed, the part of the
    second derivative in V that is always positive.
    """
    e, e_m, e_v, e_mm, e_mv, g = parts
    speed = e.sqrt()
    weight = weight / torch.where(speed > 0, speed, 1)
    s_m, s_v = e_m / 2, s[..., None] * e_m / 2 + e_v / 2  # speed times its gradient
    unit = torch.where(e > 0, e, 1)[..., None, None]
    s = s[..., None, None]
    mixed = s * e_mm + e_mv
    second = [
        e_mm / 2 - s_m[..., :, None] * s_m[..., None, :] / unit,
        mixed / 2 - s_m[..., :, None] * s_v[..., None, :] / unit,
        (s * (mixed + e_mv.mT)) / 2 + g - s_v[..., :, None] * s_v[..., None, :] / unit,
        g,
    ]
    first = [torch.einsum("pq,pqi->pi", weight, a) for a in (s_m, s_v)]
    return first + [torch.einsum("pq,pqij->pij", weight, a) for a in second]


def segment_jet(metric: Metric, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """e = vᵀ g(m) v, its derivatives e_m, e_v, e_mm, e_mv, and g."""
    if hasattr(metric, "jet"):
        g, dg, ddg = metric.jet(m)
        slope = torch.einsum("nijk,nj->nki", dg, v)
        gv = (g @ v[:, :, None])[:, :, 0]
        return (
            (v * gv).sum(1),
            (slope @ v[:, :, None])[:, :, 0],
            2 * gv,
            torch.einsum("nijkl,ni,nj->nkl", ddg, v, v),
            2 * slope,
            g,
        )
    with torch.enable_grad():
        m, v = m.detach().requires_grad_(True), v.detach().requires_grad_(True)
        g = metric(m)
        check_graph(g, m)
        e = torch.einsum("ni,nij,nj->n", v, g, v)
        e_m, e_v = _both(e, m, v)
        columns = [_both(e_m[:, k], m, v) for k in range(m.shape[1])]
    e_mm, e_mv = (torch.stack(part, 1) for part in zip(*columns, strict=True))
    return tuple(part.detach() for part in (e, e_m, e_v, e_mm, e_mv, g))


def _both(values: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not values.requires_grad:
        return torch.zeros_like(m), torch.zeros_like(v)
    return torch.autograd.grad(values.sum(), (m, v), create_graph=True, materialize_grads=True)


def solve_tridiagonal(diagonal: Tensor, upper: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve a batch of symmetric block-tridiagonal systems of small blocks.

    Cyclic reduction: every second block row is eliminated at once, so k rows cost about log2 k
    batched operations of O(k d³) in total (Golub and Van Loan, Matrix Computations, 4.5.4).

    diagonal: (b, k, d, d), symmetric. upper: (b, k - 1, d, d), coupling of row i to row i + 1.
    right: (b, k, d). Returns the solution (b, k, d), and (b,) whether the matrix is positive
    definite; the solution is meaningless where it is not.
    """
    inverse, positive = _inverse(diagonal[:, ::2])
    if diagonal.shape[1] == 1:
        return _times(inverse, right), positive
    odd = diagonal.shape[1] // 2
    left, onward = upper[:, ::2], upper[:, 1::2]  # even i to odd i, odd i to even i + 1
    pairs = onward.shape[1]
    from_left = left.mT @ inverse[:, :odd]
    from_right = onward @ inverse[:, 1 : pairs + 1]
    reduced, load = diagonal[:, 1::2] - from_left @ left, right[:, 1::2]
    load = load - _times(from_left, right[:, 0 : 2 * odd : 2])
    reduced = torch.cat([reduced[:, :pairs] - from_right @ onward.mT, reduced[:, pairs:]], 1)
    passed = load[:, :pairs] - _times(from_right, right[:, 2 : 2 * pairs + 1 : 2])
    load = torch.cat([passed, load[:, pairs:]], 1)
    coupling = -from_right[:, : odd - 1] @ left[:, 1:]
    odd_part, odd_positive = solve_tridiagonal(reduced, coupling, load)
    rest = right[:, ::2].clone()
    rest[:, :odd] -= _times(left, odd_part)
    rest[:, 1 : pairs + 1] -= _times(onward.mT, odd_part[:, :pairs])
    solution = torch.empty_like(right)
    solution[:, ::2], solution[:, 1::2] = _times(inverse, rest), odd_part
    return solution, positive & odd_positive


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[..., None, :]).sum(-1)


def _inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of (b, k, d, d) by Gauss-Jordan without pivoting, and (b,) whether all positive."""
    a = matrix.clone()
    positive = torch.ones(len(a), dtype=torch.bool, device=a.device)
    for k in range(a.shape[-1]):
        pivot = a[..., k, k].clone()
        positive &= (pivot > 0).all(1)
        row, column = a[..., k, :] / pivot[..., None], a[..., :, k].clone()
        a = a - column[..., :, None] * row[..., None, :]
        a[..., k, :] = row
        a[..., :, k] = -column / pivot[..., None]
        a[..., k, k] = 1 / pivot
    return a, positive
