"""What is compared between a device and the CPU: the public calls of lib, and a case for each.

A case takes `on`, which moves what it is given to the device, and returns what the call returned.
It is run once with a device of its own and once with the CPU; nothing else may differ.
"""

import copy
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from lib.diffusion import models

ROOMS = ("geometry", "diffusion", "slices", "hspace", "svd", "faces")
TOLERANCE = {"pretend": 1e-4, "cuda": 2e-3}  # of the largest entry: orders of summation differ
TRAINED = 0.1  # the same after a descent in float32: Adam makes whole steps of rounding errors
CASES: dict[str, Callable] = {}
EXCEPTIONS: dict[str, str] = {}
ON_CPU: dict[str, str] = {}  # calls that answer on the CPU, and why
DESCENTS: set[str] = set()  # calls that train


def public_calls() -> dict[str, object]:
    """{room.file.name: object} of all public functions, and classes that do something."""
    found = {}
    for room in ROOMS:
        package = importlib.import_module(f"lib.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"lib.{room}."):
            names = vars(importlib.import_module(module.name)).items()
            own = {n: x for n, x in names if getattr(x, "__module__", "") == module.name}
            path = module.name.removeprefix("lib.")
            found |= {f"{path}.{n}": x for n, x in own.items() if _is_call(n, x)}
    return found


def _is_call(name: str, value: object) -> bool:
    if name.startswith("_"):
        return False
    if inspect.isclass(value):  # a record of results alone is none
        methods = [n for n, m in vars(value).items() if inspect.isfunction(m) and m.__doc__]
        return any(not n.startswith("_") or n == "__call__" for n in methods) and not issubclass(
            value, Exception
        )
    return inspect.isfunction(inspect.unwrap(value)) if callable(value) else False


class On:
    """Moves tensors, modules and generators, and containers of them, to one device, as copies."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def __call__(self, value):
        """The value on the device; numbers, texts and arrays stay as they are."""
        if isinstance(value, models.Generator):
            return self._generator(value)
        if isinstance(value, torch.nn.Module):
            return copy.deepcopy(value).to(self.device)
        if isinstance(value, torch.Tensor):
            return value.to(self.device)
        if isinstance(value, dict):
            return {key: self(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        return value

    def _generator(self, generator: models.Generator) -> models.Generator:
        twin = copy.copy(generator)
        for name in ("unet", "autoencoder", "text_encoder"):
            if getattr(twin, name) is not None:
                setattr(twin, name, self(getattr(twin, name)))
        twin._embeddings, twin._hash = {}, None
        return twin


def run(name: str, device: torch.device | str) -> list:
    """The numbers and tensors that a case returns on a device, in a fixed order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(leaves(CASES[name](On(device))))


def run_watched(name: str, value: object) -> tuple[list, bool]:
    """What a case returns on the CPU, and whether it runs the call that it is named after."""
    own = vars(value).values() if inspect.isclass(value) else [value]
    own = [inspect.unwrap(f) for f in own if callable(f)]
    codes, seen = {f.__code__ for f in own if inspect.isfunction(f)}, set()

    def note(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in codes:
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        return run(name, "cpu"), bool(seen)
    finally:
        sys.setprofile(None)


def leaves(value: object) -> Iterator:
    """Tensors, arrays, numbers and texts inside a result."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key])
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, torch.Tensor | np.ndarray | float | int | bool | str):
        yield value


def differences(name: str, device: torch.device | str) -> list[str]:
    """What is wrong with a call on a device: other values than the CPU's, or another home."""
    (expected, called), found = run_watched(name, public_calls()[name]), run(name, device)
    if not called or not expected or len(expected) != len(found):
        return [f"{len(found)} results for {len(expected)} on the CPU; called: {called}"]
    kind = torch.device(device).type
    most = TRAINED if name in DESCENTS else TOLERANCE.get(kind, 0.0)
    wrong = [w for pair in zip(found, expected, strict=True) if (w := _difference(*pair, most))]
    home = "cpu" if name in ON_CPU else kind
    homes = {x.device.type for x in found if isinstance(x, torch.Tensor)}
    return wrong + ([f"tensors on {sorted(homes)}, not on {home}"] if homes - {home} else [])


def _difference(found: object, expected: object, most: float) -> str:
    if isinstance(expected, str):
        return "" if found == expected else f"{found!r} for {expected!r}"
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (found, expected))
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} for {tuple(b.shape)}"
    finite = b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return "other entries are not finite"
    if not finite.any():
        return ""
    scale = max(float(b[finite].abs().max()), 1e-6)
    gap = float((a - b)[finite].abs().max()) / scale
    return "" if gap <= most else f"off by {gap:.1e} of the largest entry"
