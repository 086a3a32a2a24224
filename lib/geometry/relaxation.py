"""Newton relaxation of discrete curves to minimal energy, many at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.geometry.metric import check_graph

COARSEST = 16  # segments of the first level: fewer could step across a narrow ridge of the metric
CPU_SEGMENTS = 2**14  # segments relaxed at once on a CPU, so that the working set stays in cache


def block_size(x: Tensor) -> int:
    """Paths handled at once."""
    return max(1, CPU_SEGMENTS // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))


def relax(metric, x: Tensor, box, floor: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Minimise the energy from the curves x, coarse to fine; (x, converged)."""
    levels = [x.shape[1] - 1]
    while levels[-1] > COARSEST:
        levels.append((levels[-1] + 1) // 2)
    finest = torch.finfo(x.dtype).eps ** 0.5
    done = []
    for block in x.split(block_size(x)):
        for segments in reversed(levels):
            last = segments == levels[0]
            block = _resample(block, segments + 1)
            block, converged = _newton(
                metric, block, box, floor, finest if last else 1e-3, max_iterations
            )
        done.append((block, converged))
    x, converged = (torch.cat(parts) for parts in zip(*done, strict=True))
    return x, converged


def _resample(x: Tensor, points: int) -> Tensor:
    """Polylines at another number of equally spaced parameters, ends kept exactly."""
    if points == x.shape[1]:
        return x
    inner = torch.nn.functional.interpolate(x.mT, size=points, mode="linear", align_corners=True).mT
    return torch.cat([x[:, :1], inner[:, 1:-1], x[:, -1:]], 1)


@dataclass
class _System:
    """Energy, gradient and the two block-tridiagonal matrices of a batch of paths."""

    energy: Tensor  # (b,)
    gradient: Tensor  # (b, k, d), interior points
    diagonal: Tensor  # (b, k, d, d), Hessian
    upper: Tensor  # (b, k - 1, d, d)
    sobolev: Tensor  # (b, k, d, d), the same with the metric held fixed: always positive
    sobolev_upper: Tensor

    def parts(self):
        return [getattr(self, name) for name in self.__dataclass_fields__]

    def rows(self, index: Tensor) -> "_System":
        return _System(*(part[index] for part in self.parts()))

    def where(self, keep: Tensor, other: "_System") -> "_System":
        pairs = zip(self.parts(), other.parts(), strict=True)
        return _System(*(torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


def _newton(metric, x, box, floor, tolerance: float, max_iterations: int):
    """Damped projected Newton on every path by itself; converged paths leave the batch."""
    result, converged = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    live = torch.arange(len(x), device=x.device)
    damping = x.new_zeros(len(x))
    system = _system(metric, x, floor)
    for _ in range(max_iterations):
        step, solved = _step(system, x, box, damping)
        trial = x.clone()
        trial[:, 1:-1] += step
        if box is not None:
            trial = trial.clamp(box[0], box[1])
        slope = (system.gradient * (trial - x)[:, 1:-1]).sum((1, 2))
        small = -slope * (1 + damping) <= tolerance**2 * system.energy
        finished = solved & small & (slope <= 0)
        result[live] = torch.where(finished[:, None, None], trial, x)
        converged[live] = finished
        if finished.all():
            break
        go = ~finished
        live, x, trial, solved, slope = (a[go] for a in (live, x, trial, solved, slope))
        damping, system = damping[go], system.rows(go)
        new = _system(metric, trial, floor)
        slack = 8 * torch.finfo(x.dtype).eps * system.energy
        accept = solved & (new.energy <= system.energy + 1e-4 * slope + slack)
        x = torch.where(accept[:, None, None], trial, x)
        system = new.where(accept, system)
        damping = torch.where(accept, damping / 10, (10 * damping).clamp(min=1e-2))
        damping = torch.where(damping < 1e-3, 0.0, damping)
        result[live] = x
    return result, converged


def _step(system: _System, x: Tensor, box, damping: Tensor) -> tuple[Tensor, Tensor]:
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


def _system(metric, x: Tensor, floor: float) -> _System:
    """Energy, gradient and Hessian from the segments' derivatives in midpoint and chord."""
    b, n = x.shape[0], x.shape[1] - 1
    m, v = ((x[:, 1:] + x[:, :-1]) / 2).flatten(0, 1), x.diff(dim=1).flatten(0, 1)
    parts = segment_jet(metric, m, v, floor)
    e, e_m, e_v, e_mm, e_mv, g = (n * part.unflatten(0, (b, n)) for part in parts)
    energy = torch.where((e >= 0).all(1) & torch.isfinite(e).all(1), e.sum(1), torch.inf)
    bend, cross = e_mm / 4 + 2 * g, (e_mv + e_mv.mT) / 2
    return _System(
        energy,
        (e_m / 2 + e_v)[:, :-1] + (e_m / 2 - e_v)[:, 1:],
        (bend + cross)[:, :-1] + (bend - cross)[:, 1:],
        (e_mm / 4 + (e_mv - e_mv.mT) / 2 - 2 * g)[:, 1:-1],
        2 * (g[:, :-1] + g[:, 1:]),
        -2 * g[:, 1:-1],
    )


def segment_jet(metric, m: Tensor, v: Tensor, floor: float):
    """e = vᵀ(g(m) + floor I)v, its derivatives e_m, e_v, e_mm, e_mv, and g + floor I."""
    identity = floor * torch.eye(m.shape[1], dtype=m.dtype, device=m.device)
    if hasattr(metric, "jet"):
        g, dg, ddg = metric.jet(m)
        g, slope = g + identity, torch.einsum("nijk,nj->nki", dg, v)
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
        g = g + identity
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

    Args:
        diagonal: (b, k, d, d), symmetric.
        upper: (b, k - 1, d, d), coupling of row i to row i + 1.
        right: (b, k, d).

    Returns:
        Solution (b, k, d), and (b,) whether every pivot was positive, that is, whether the matrix
        is positive definite; the solution is meaningless where it is not.
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
