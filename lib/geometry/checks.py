"""What the calls of this room ask of their input, one helper for each kind."""

import copy
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from lib.intervals import Values as Values

Metric = Callable[[Tensor], Tensor]  # (n, d) -> (n, d, d), row by row
Potential = Callable[[Tensor], Tensor]  # (n, d) -> (n,), row by row
Natural = Callable[[Tensor], Tensor]  # t (n, d) -> θ (n, d), row by row


def as_tensor(values: Values, name: str) -> Tensor:
    """Real numbers as a tensor, on the device of the input; floats of a list are float64."""
    if _not_numbers(values):
        raise ValueError(
            f"{name} holds {_not_numbers(values)}, not real numbers; give numbers (n, ...), as "
            "many in every row; an array of objects that are numbers takes .astype(float)"
        )
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {array.dtype}, not real numbers; give numbers (n, ...)")
        values = torch.as_tensor(np.require(array, requirements="CW"))
    if values.is_complex():
        raise ValueError(f"{name} is complex; give real numbers, or real and imaginary parts apart")
    return values


def _not_numbers(values: Values) -> str:
    """What an array or lists hold that are no real numbers; nothing where they are."""
    if isinstance(values, Tensor):
        return ""
    try:
        held = np.asarray(values).dtype
    except ValueError:
        return "rows of unequal length"
    return "" if held.kind in "biuf" else str(held)


def float64(values: Values, name: str = "values") -> Tensor:
    """Real numbers in double precision, on the device of the input."""
    return as_tensor(values, name).double()


def as_points(t: Values, name: str = "t") -> Tensor:
    """Finite floating-point (n, d) tensor; arrays keep their precision, integers become float64."""
    if as_tensor(t, name).ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(as_tensor(t, name).shape)}; expected (n, d) with d >= 1: an "
            f"array {name}[:, None] for one parameter, {name}[None] for one point"
        )
    t = as_tensor(t, name)
    t = t if t.is_floating_point() else t.double()
    if t.ndim != 2 or t.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected (n, d) with d >= 1")
    if not torch.isfinite(t).all():
        row = int((~torch.isfinite(t)).any(1).nonzero()[0])
        raise ValueError(f"{name}[{row}] = {t[row].tolist()} is not finite; drop or mend that row")
    return t


def require_finite(name: str, values: Tensor) -> None:
    """Raise a ValueError that counts the entries that are not finite."""
    bad = (~values.isfinite()).sum().item()
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; remove or mend them")


def require_whole(least: int, **values: int) -> None:
    """Raise a ValueError unless each value is an integer of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r}; give an integer of at least {least}")


def mapped(natural: Natural, t: Tensor) -> Tensor:
    """natural(t), (n, d), or a ValueError that says what it returned instead."""
    if isinstance(natural, np.ufunc) or not callable(natural):
        raise ValueError(
            f"natural = {natural!r}; give a function of torch operations, (n, d) -> (n, d), row by "
            "row, such as torch.log: it is differentiated"
        )
    theta = natural(t)
    if not isinstance(theta, Tensor) or theta.shape != t.shape:
        found = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
        raise ValueError(
            f"natural(t) returned {found} for t of shape {tuple(t.shape)}; give torch operations "
            "(n, d) -> (n, d), row by row"
        )
    require_finite("natural(t) on the box", theta)
    return theta


def trainable(network: nn.Module, samples: Tensor, shape: tuple[int, ...]) -> nn.Module:
    """A copy in single precision beside the samples, or a ValueError.

    The few samples given show that it reads them and returns finite numbers (n, *shape).
    """
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network is of type {type(network).__name__}; give a torch.nn.Module, whose weights "
            "can be fitted"
        )
    network = copy.deepcopy(network).float().to(samples.device)
    if not any(weights.requires_grad for weights in network.parameters()):
        raise ValueError("network has no weights to fit; give one with parameters")
    try:
        with torch.no_grad():
            seen = copy.deepcopy(network).eval()(samples)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"network cannot read samples of shape {tuple(samples.shape)} in single precision: "
            f"{error}"
        ) from error
    if not isinstance(seen, Tensor) or seen.shape != (len(samples), *shape):
        found = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ValueError(
            f"network returned {found} for samples of shape {tuple(samples.shape)}; expected "
            f"{(len(samples), *shape)}"
        )
    require_finite("network(samples)", seen)
    return network


def occupied(samples: Tensor) -> Tensor:
    """Where a two-state system is in its upper state; ValueError unless coded −1/+1 or 0/1."""
    up, low = samples == 1, samples == (0 if (samples == 0).any() else -1)
    if not (up | low).all():
        states = samples[:4096].unique().tolist()
        raise ValueError(
            f"samples hold the states {states[:4]}{', ...' if len(states) > 4 else ''}: two states "
            "are coded -1 and +1, or 0 and 1; give samples == upper, or network= for anything else"
        )
    return up


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
