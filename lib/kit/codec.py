"""Values as a JSON tree plus arrays: what a cache entry stores and what a cache key is made of.

No pickle: classes and functions are stored by name, and only names below `TRUSTED` are looked up.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, str)
TRUSTED = ("lib", "numpy", "scipy", "torch", "math", "operator")


@dataclass
class Sink:
    """What one encoding collects: the arrays in order of appearance, and the names it uses.

    A name is `module:definition`, or `module:` for a module. `replace` sees every value first; what
    it returns, unless None, stands for the value.
    """

    arrays: list[np.ndarray] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    replace: Callable[[object, "Sink"], object] = lambda value, sink: None


def name_of(thing: object, below: tuple[str, ...] | None = None) -> str | None:
    """Return `module:qualname` of a class or function that can be imported by it, else None.

    Only names `below` the given packages count, by default the trusted ones; () stands for all but
    `__main__`.
    """
    below = TRUSTED if below is None else below
    module = getattr(thing, "__module__", None) or "__main__"
    if module == "__main__" or (below and module.split(".")[0] not in below):
        return None
    # The qualified name of a torch builtin is not always an attribute of its module; its name is.
    for attribute in ("__qualname__", "__name__"):
        name = f"{module}:{getattr(thing, attribute, '')}"
        try:
            if _import(name) is thing:
                return name
        except (ImportError, AttributeError):
            continue
    return None


def _look_up(name: str) -> object:
    """Import what a stored entry names."""
    if name.partition(":")[0].split(".")[0] not in TRUSTED:
        raise ValueError(f"{name!r} is not below one of {TRUSTED}: refusing to import it")
    return _import(name)


def _import(name: str) -> object:
    module, _, qualname = name.partition(":")
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


def _named(thing: object, sink: Sink) -> str:
    name = name_of(thing)
    if name is None:
        raise ValueError(
            f"cannot store {thing!r}: it has no importable name below {TRUSTED}; "
            "move its definition to a module of lib"
        )
    sink.names.add(name)
    return name


def _put(array: np.ndarray, sink: Sink) -> int:
    if array.dtype.hasobject:
        raise ValueError(f"cannot store an array of dtype {array.dtype}: use numbers or strings")
    sink.arrays.append(array)
    return len(sink.arrays) - 1


def encode(value: object, sink: Sink) -> object:
    """Return the JSON tree of `value`; arrays go to `sink`.

    Raises ValueError when `value` holds something that has no stored form.
    """
    replaced = sink.replace(value, sink)
    if replaced is not None:
        return replaced
    if type(value) in PLAIN:
        return value
    if type(value) is list:
        return [encode(item, sink) for item in value]
    for tag, (matches, write, _) in FORMS.items():
        if matches(value):
            return {tag: write(value, sink)}
    raise ValueError(
        f"cannot store or hash a {type(value).__module__}.{type(value).__qualname__}: pass plain "
        "values, arrays, tensors, or dataclasses and networks defined in lib"
    )


def decode(tree: object, arrays: list[np.ndarray], functions: dict[str, Callable] | None = None):
    """Return the value that `encode` wrote; `functions` holds those stored by hash."""
    if isinstance(tree, list):
        return [decode(item, arrays, functions) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((tag, body),) = tree.items()
    if tag == "argument":
        return functions[body]
    return FORMS[tag][2](body, lambda item: decode(item, arrays, functions), arrays)


def _write_dict(value: dict, sink: Sink) -> dict:
    if not all(type(key) is str for key in value):
        raise ValueError(f"cannot store a dict with keys {list(value)[:4]}: keys must be str")
    return {key: encode(item, sink) for key, item in value.items()}


def _write_tensor(value: torch.Tensor, sink: Sink) -> list:
    host = value.detach().cpu().contiguous()
    bits = host.view(torch.int16) if host.dtype == torch.bfloat16 else host
    dtype = str(value.dtype).removeprefix("torch.")
    return [_put(bits.numpy(), sink), dtype, value.device.type, value.requires_grad]


def _read_tensor(body: list, arrays: list[np.ndarray]) -> torch.Tensor:
    index, dtype, device, differentiable = body
    tensor = torch.from_numpy(np.ascontiguousarray(arrays[index]).reshape(arrays[index].shape))
    tensor = tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
    tensor = tensor.to(device if torch.cuda.is_available() else "cpu")
    return tensor.requires_grad_(differentiable)


def _write_network(value: torch.nn.Module, sink: Sink) -> list:
    if not isinstance(getattr(value, "config", None), dict):
        raise ValueError(
            f"cannot store a {type(value).__qualname__}: a network needs the dict attribute "
            "`config` with the arguments of its constructor"
        )
    state = {key: item.detach() for key, item in value.state_dict().items()}
    parts = (value.config, state, value.training)
    return [_named(type(value), sink), *(encode(part, sink) for part in parts)]


def _read_network(body: list, read: Callable) -> torch.nn.Module:
    config, state, training = map(read, body[1:])
    with torch.random.fork_rng():  # building draws initial weights: leave the caller's stream alone
        network = _look_up(body[0])(**config)
    # assign keeps the stored precision; copying would cast to that of the fresh network.
    network.load_state_dict(state, assign=True)
    return network.train(training)


def _write_dataclass(value: object, sink: Sink) -> list:
    fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return [_named(type(value), sink), _write_dict(fields, sink)]


def _read_dataclass(body: list, read: Callable) -> object:
    kind = _look_up(body[0])
    value = object.__new__(kind)  # the fields are already validated: no second __post_init__
    for key, item in body[1].items():
        object.__setattr__(value, key, read(item))
    return value


def _text(value: object, sink: Sink) -> str:
    return str(value).removeprefix("torch.")


def _is(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


# tag: (does it apply, (value, sink) -> body, (body, read, arrays) -> value); the first is taken.
FORMS: dict[str, tuple[Callable, Callable, Callable]] = {
    "scalar": (_is(np.generic), lambda v, s: _put(np.asarray(v), s), lambda b, r, a: a[b][()]),
    "bytes": (_is(bytes), lambda v, s: v.hex(), lambda b, r, a: bytes.fromhex(b)),
    "namedtuple": (
        lambda v: isinstance(v, tuple) and hasattr(v, "_fields"),
        lambda v, s: [_named(type(v), s), [encode(item, s) for item in v]],
        lambda b, r, a: _look_up(b[0])(*map(r, b[1])),
    ),
    "tuple": (
        lambda v: type(v) is tuple,
        lambda v, s: [encode(item, s) for item in v],
        lambda b, r, a: tuple(map(r, b)),
    ),
    "dict": (
        lambda v: type(v) is dict,
        _write_dict,
        lambda b, r, a: {key: r(item) for key, item in b.items()},
    ),
    "array": (lambda v: type(v) is np.ndarray, _put, lambda b, r, a: a[b]),
    "tensor": (_is(torch.Tensor), _write_tensor, lambda b, r, a: _read_tensor(b, a)),
    "dtype": (_is(torch.dtype), _text, lambda b, r, a: getattr(torch, b)),
    "device": (_is(torch.device), _text, lambda b, r, a: torch.device(b)),
    "partial": (
        _is(functools.partial),
        lambda v, s: [encode(part, s) for part in (v.func, v.args, dict(v.keywords))],
        lambda b, r, a: functools.partial(r(b[0]), *r(b[1]), **r(b[2])),
    ),
    "method": (
        inspect.ismethod,
        lambda v, s: [encode(v.__self__, s), v.__name__],
        lambda b, r, a: getattr(r(b[0]), b[1]),
    ),
    "network": (_is(torch.nn.Module), _write_network, lambda b, r, a: _read_network(b, r)),
    "dataclass": (
        lambda v: dataclasses.is_dataclass(v) and not isinstance(v, type),
        _write_dataclass,
        lambda b, r, a: _read_dataclass(b, r),
    ),
    "function": (callable, _named, lambda b, r, a: _look_up(b)),
}
