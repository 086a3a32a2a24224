"""What every metric routine asks of its input."""

from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]


def as_points(t, name: str = "t") -> Tensor:
    """Finite floating-point (n, d) tensor; arrays keep their precision, integers become float64."""
    t = torch.as_tensor(t)
    t = t if t.is_floating_point() else t.double()
    if t.ndim != 2 or t.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected (n, d) with d >= 1")
    if not torch.isfinite(t).all():
        row = int((~torch.isfinite(t)).any(1).nonzero()[0])
        raise ValueError(f"{name}[{row}] = {t[row].tolist()} is not finite; drop or mend that row")
    return t


def check_positive(g: Tensor, t: Tensor) -> None:
    """Raise a ValueError that says where a metric is not finite or not positive definite."""
    finite = torch.isfinite(g).flatten(1).all(1)
    bad = ~finite | (torch.linalg.cholesky_ex(g).info > 0)
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    what = "is not finite"
    if finite[row]:
        what = f"has eigenvalue {torch.linalg.eigvalsh(g[row])[0].item():.3g}"
    raise ValueError(
        f"the metric {what} at t = {t[row].tolist()} ({int(bad.sum())} of {len(t)} points are not "
        "positive); give floor > 0 where it is degenerate, or keep to its domain"
    )
