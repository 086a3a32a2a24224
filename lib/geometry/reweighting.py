"""log Z from known statistics and labels: multistate reweighting with the labels as the states.

Samples x_n drawn at labels θ_n have, taken together, the mixture density

    q(x) = h(x) (1/N) Σ_m exp(⟨θ_m, f(x)⟩ − φ(θ_m)),

so every log Z is one average over all of them, φ(θ) = log (1/N) Σ_n exp(⟨θ, f_n⟩) h(x_n) / q(x_n),
also at the labels themselves: a set of equations for φ there, solved by Newton's method. This is
MBAR, which given f is maximum likelihood in h: no other unbiased use of the samples has a smaller
variance in the limit of many. Its standard implementation wants a finite set of states with many
samples each; here neighbouring labels are gathered into cells, each a state at its mean label that
counts as often as it has samples. The prior of the labels cancels: it may be anything.
"""

import heapq
import itertools

import torch
from torch import Tensor, nn

from lib.geometry.checks import (
    Natural,
    Values,
    as_points,
    as_tensor,
    float64,
    mapped,
    require_finite,
    require_whole,
)

STEPS = 60
SWEEPS = 10
ROWS = 256  # of θ at once, beside all the statistics


class Reweighted(nn.Module):
    """φ(θ) = log Σ_n w_n exp(⟨θ, f_n⟩): smooth and convex, its Hessian a reweighted covariance.

    statistics: (n, d), distinct. log_weights: (n,).
    """

    def __init__(self, statistics: Tensor, log_weights: Tensor):
        super().__init__()
        self.config = dict(statistics=statistics, log_weights=log_weights)
        self.register_buffer("statistics", statistics)
        self.register_buffer("log_weights", log_weights)

    def forward(self, theta: Values) -> Tensor:
        """φ at θ (n, d), shape (n,), float64."""
        if as_points(theta, "theta").shape[1] != self.statistics.shape[1]:
            raise ValueError(_other_columns(theta, self.statistics))
        blocks = float64(theta, "theta").split(ROWS)
        return torch.cat([torch.logsumexp(self._logs(block), 1) for block in blocks])

    def _logs(self, theta: Tensor) -> Tensor:
        """log w_n + ⟨θ, f_n⟩, (n, S)."""
        return theta @ self.statistics.T + self.log_weights

    def moments(self, theta: Values) -> tuple[Tensor, Tensor, Tensor]:
        """φ (n,), its gradient, the mean of f (n, d), and Hessian, the covariance (n, d, d)."""
        if as_points(theta, "theta").shape[1] != self.statistics.shape[1]:
            raise ValueError(_other_columns(theta, self.statistics))
        theta, f = float64(theta, "theta"), self.statistics
        n, d = theta.shape
        phi, mean, covariance = (theta.new_empty(n, *end) for end in ((), (d,), (d, d)))
        for k in range(0, n, ROWS):  # into place: what is small and kept would split freed memory
            block = slice(k, k + ROWS)
            log = self._logs(theta[block])
            p = log.softmax(1)
            first = p @ f
            second = (p @ (f[:, :, None] * f[:, None]).flatten(1)).unflatten(1, (d, d))
            phi[block], mean[block] = log.logsumexp(1), first
            covariance[block] = second - first[:, :, None] * first[:, None]
        return phi, mean, covariance


def _other_columns(theta: Values, statistics: Tensor) -> str:
    return (
        f"theta has shape {tuple(as_points(theta).shape)}; this log Z takes (n, "
        f"{statistics.shape[1]}), natural coordinates, as many as the fit had"
    )


def reweight(
    statistics: Values,
    t: Values,
    *,
    natural: Natural | None = None,
    cells: int = 400,
    tolerance: float = 1e-6,
) -> Reweighted:
    """Solve for log Z of an exponential family with known sufficient statistics.

    With mean labels θ_k of the cells and their shares c_k of the samples, φ minimises the convex

        (1/N) Σ_n log Σ_k c_k exp(⟨θ_k, f_n⟩ − φ_k) + Σ_k c_k φ_k.

    statistics: (n, d), f(x_n). t: (n, d), the label of each sample, from any prior. natural: t ->
    θ.
    cells: at most so many, small where a sample knows its label well; equal labels are one cell, so
    that few distinct labels are treated exactly. tolerance: of the share of a cell, relative.
    Raises ValueError on shapes that disagree, values that are not finite, and labels with gaps that
    no sample bridges.
    Source: Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008); Vardi, Ann. Stat. 13, 178 (1985).
    """
    require_whole(1, cells=cells)
    f, theta = _checked(statistics, t, natural)
    cell = label_cells(theta, f, cells)
    count = cell.bincount().double()
    nodes, means = (_means(x, cell, count) for x in (theta, f))
    f, repeats = torch.unique(f, dim=0, return_counts=True)
    energies = nodes @ f.T + (count / len(t)).log()[:, None]
    share = repeats.double() / len(t)
    phi = _averaged(_integrated(nodes, means), energies, count / len(t), share)
    phi = _newton(phi, energies, count / len(t), share, tolerance)
    _refuse_gaps(energies - phi[:, None], count, share)
    mixture = torch.logsumexp(energies - phi[:, None], 0)
    return Reweighted(f, share.log() - mixture).to(as_tensor(statistics, "statistics").device)


def label_cells(theta: Tensor, f: Tensor, most: int) -> Tensor:
    """Number of the cell of each label, (n,): neighbours that their samples can hardly tell apart.

    Twice the trace of Cov(θ, f) within a cell is the mean log-odds with which two of its samples
    reveal their exchange. Times the number of samples, it says which cell to halve next, and its
    largest entry along which coordinate.
    """
    number, heap = itertools.count(), []

    def add(rows: Tensor) -> None:
        apart = ((theta[rows] - theta[rows].mean(0)) * (f[rows] - f[rows].mean(0))).sum(0)
        axis = int(apart.argmax())
        # a single label may be told apart from itself by rounding only
        worth = apart[axis].item() if theta[rows, axis].unique().numel() > 1 else 0.0
        heapq.heappush(heap, (-worth, next(number), rows, axis))

    add(torch.arange(len(theta)))
    while len(heap) < most and heap[0][0] < 0:
        _, _, rows, axis = heapq.heappop(heap)
        values = theta[rows, axis]
        middle = values.median()
        low = values <= middle if middle < values.max() else values < middle
        add(rows[low])
        add(rows[~low])
    cell = torch.empty(len(theta), dtype=torch.long)
    for k, (_, _, rows, _) in enumerate(heap):
        cell[rows] = k
    return cell


def _means(values: Tensor, cell: Tensor, count: Tensor) -> Tensor:
    """Mean of the values (n, d) over each cell, (K, d)."""
    return (
        values.new_zeros(len(count), values.shape[1]).index_add_(0, cell, values) / count[:, None]
    )


def _integrated(nodes: Tensor, means: Tensor) -> Tensor:
    """φ at the nodes to start from: φ_b − φ_a = ⟨θ_b − θ_a, (f_a + f_b)/2⟩, by least squares.

    Pairs of nodes count the less the farther apart they are, in the nats that tell them apart.
    """
    overlap = nodes @ means.T
    own = overlap.diagonal()
    apart = own[:, None] + own[None] - overlap - overlap.T
    rise = (overlap.T - overlap + own[None] - own[:, None]) / 2
    weight = (1 + apart.clamp_min(0)) ** -3
    laplacian = weight.sum(1).diag() - weight
    laplacian[0, 0] += 1
    return torch.linalg.solve(laplacian, (weight * rise).sum(0))


def _averaged(phi: Tensor, energies: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """Insert φ in the averages that it is to solve, a few times.

    Slow near the end, but where a start is wrong by hundreds of nats, and no sample seems to belong
    to a cell, one such step sees how many nats are missing and Newton's sees no curvature.
    """
    for _ in range(SWEEPS):
        log = energies - phi[:, None]
        held = (log - log.logsumexp(0) + share.log()).logsumexp(1)
        phi = phi + held - weights.log()
    return phi


def _newton(
    phi: Tensor, energies: Tensor, weights: Tensor, share: Tensor, tolerance: float
) -> Tensor:
    """Damped Newton steps until every node holds its weight of the samples."""
    value, p = _objective(phi, energies, weights, share)
    for _ in range(STEPS):
        mass = p @ share
        gradient = weights - mass
        if (gradient.abs() / weights).max() < tolerance:
            return phi - phi[0]
        hessian = mass.diag() - (p * share) @ p.T
        # the constant in φ is free, and a cell that no sample sees has no curvature
        hessian += 1e-9 * mass.mean() * torch.eye(len(phi), dtype=phi.dtype)
        step = -torch.linalg.solve(hessian, gradient)
        step *= (20 / step.sub(step.mean()).abs().max()).clamp(max=1)
        slope, length = (gradient @ step).item(), 1.0
        while length > 1e-6:
            trial, trial_p = _objective(phi + length * step, energies, weights, share)
            if trial <= value + 1e-4 * length * slope + 1e-12 * abs(value):
                break
            length /= 2
        phi, value, p = phi + length * step, trial, trial_p
    raise ValueError(
        f"reweighting did not converge on {len(phi)} cells: some labels are so far from the others "
        "that no sample belongs to both; give more samples between them, or more cells"
    )


def _refuse_gaps(log: Tensor, count: Tensor, share: Tensor) -> None:
    """Where no sample belongs to both sides of a gap, any difference of φ across it will do.

    The second eigenvalue of the overlaps of the cells says how well the worst gap is bridged.
    """
    n = count.sum()
    p = log.softmax(0) / (count / n).sqrt()[:, None]
    bridge = n.item() * (1 - torch.linalg.eigvalsh((p * share) @ p.T)[-2:][0].item())
    if len(count) > 1 and bridge < 1e-3:
        raise ValueError(
            f"the labels fall into groups that {bridge:.2g} samples bridge, so that log Z of one "
            "group says nothing about another; give samples with labels between them"
        )


def _objective(
    phi: Tensor, energies: Tensor, weights: Tensor, share: Tensor
) -> tuple[float, Tensor]:
    """The convex function and the posterior of the nodes for each statistic, (K, S)."""
    log = energies - phi[:, None]
    total = log.logsumexp(0)
    return (share @ total + weights @ phi).item(), (log - total).exp_()


def _checked(statistics: Values, t: Values, natural: Natural | None) -> tuple[Tensor, Tensor]:
    """Statistics and natural labels, (n, d) each, or a ValueError."""
    f, t = float64(statistics, "statistics").cpu(), as_points(t).double().cpu()
    if f.shape != t.shape:
        raise ValueError(
            f"statistics, t have shapes {tuple(f.shape)}, {tuple(t.shape)}; expected (n, d) twice, "
            "one statistic for each coordinate"
        )
    require_finite("statistics", f)
    return f, t if natural is None else mapped(natural, t)
