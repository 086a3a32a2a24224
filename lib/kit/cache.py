"""Results of slow functions, kept on disk and found again by what they were made from.

A key covers the function with all definitions of `lib` behind it (`digests` has the rule), the
arguments by content, the seed of the run, model weights that the arguments name, the lock file,
installed versions and the device class. An entry is one npz file with its own SHA-256; nothing is
pickled. Weights that a function loads without being told their name do not enter its key.
"""

import contextlib
import dis
import functools
import importlib.metadata
import inspect
import io
import itertools
import json
import sys
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType

import numpy as np
import torch

from lib.kit import codec, digests, session
from lib.kit.digests import weights

__all__ = ["cached", "key", "path", "weights"]

VERSIONED = ("numpy", "scipy", "numba", "torch", "diffusers", "transformers", "resvg-py")
ABSENT = "absent"
_first_seen: dict[digests.Reference, str] = {}
_library = digests.Library()


def cached(function: Callable, /, *args, **kwargs) -> object:
    """Return `function(*args, **kwargs)`, from the cache when the same call was made before.

    Values may be plain values, arrays, tensors, and the dataclasses and networks of `lib`, and come
    back detached from any graph. A corrupt entry is reported, deleted and computed anew; one of a
    class that has moved since is computed anew. Raises ValueError when an argument or the value has
    no stored form, or when a definition was edited after this Python session first used it.
    """
    function, args, kwargs = _flatten(function, args, kwargs)
    entry, local_functions = _entry(function, args, kwargs)
    if (found := _read(entry)) is not None:
        with contextlib.suppress(ImportError, AttributeError):
            return codec.decode(*found, local_functions)
    value = function(*args, **kwargs)
    sink = codec.Sink(replace=functools.partial(_keep_arguments, local_functions))
    found = codec.encode(value, sink), sink.arrays
    _write(entry, *found)
    return codec.decode(*found, local_functions)


def key(function: Callable, /, *args, **kwargs) -> str:
    """Return the key under which `cached` keeps this call: 64 hexadecimal digits."""
    return path(function, *args, **kwargs).stem


def path(function: Callable, /, *args, **kwargs) -> Path:
    """Return the file in which `cached` keeps this call, there or not."""
    return _entry(*_flatten(function, args, kwargs))[0]


def _flatten(function: Callable, args: tuple, kwargs: dict) -> tuple[Callable, tuple, dict]:
    """Unpack partial application, so that equal calls share a key."""
    while isinstance(function, functools.partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def _entry(function: Callable, args: tuple, kwargs: dict) -> tuple[Path, dict[str, Callable]]:
    """File of this call, and the notebook functions among its arguments by hash of their code."""
    local_functions: dict[str, Callable] = {}
    sink = codec.Sink(replace=functools.partial(_for_key, local_functions, []))
    call = codec.encode([function, *_bind(function, args, kwargs)], sink)
    run = session.active()
    context = {
        "seed": run.seed if run else None,
        "sources": _source_digest(sink.names),
        "weights": {text: weights(text) for text in sorted(_model_names(call))},
        "versions": _versions(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    digest = _digest([call, context], sink.arrays)
    name = getattr(function, "__qualname__", "object")  # without a module, which may be renamed
    return session.cache_folder() / name.replace("<", "").replace(
        ">", ""
    ) / f"{digest}.npz", local_functions


def _bind(function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments in the form the signature gives them, so that f(1, b=2) and f(1, 2) agree."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except ValueError:  # builtins without a signature
        return args, kwargs
    bound.apply_defaults()
    return bound.args, dict(sorted(bound.kwargs.items()))


def _for_key(local_functions: dict, open_: list, value: object, sink: codec.Sink) -> object:
    """Stand-in, within a key, for weights, modules and functions without an importable name."""
    if hasattr(value, "weight_hash") and not isinstance(value, type):
        kind = type(value)
        sink.names.add(f"{kind.__module__}:{kind.__qualname__}")
        return {"weights": [kind.__qualname__, value.weight_hash, str(getattr(value, "dtype", ""))]}
    if isinstance(value, types.ModuleType):
        sink.names.add(f"{value.__name__}:")
        return {"module": "lib" if _in_lib(value.__name__) else value.__name__}
    nameable = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
    if nameable and (name := codec.name_of(value, below=())):
        sink.names.add(name)
        return {"function": _moved_freely(name)}
    if isinstance(value, types.FunctionType):
        tree = _code_tree(value, open_, sink)
        local_functions[(digest := _digest(tree, sink.arrays))] = value
        return {"code": digest}
    return None


def _keep_arguments(local_functions: dict, value: object, sink: codec.Sink) -> object:
    """Stand-in, within a stored value, for a notebook function that was among the arguments."""
    for digest, function in local_functions.items():
        if function is value:
            return {"argument": digest}
    return None


def _code_tree(function: types.FunctionType, open_: list, sink: codec.Sink) -> dict:
    """Code, constants, defaults, closure and referenced globals; `open_` breaks recursion."""
    if function in open_:
        return {"again": open_.index(function)}
    code, outer = function.__code__, function.__globals__
    sink.names.update(_lib_names(code, outer))
    steps = (step for part in _nested(code) for step in dis.get_instructions(part))
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    used = {name: outer[name] for name in names & set(outer)}
    parts = {
        "defaults": function.__defaults__,
        "keyword defaults": function.__kwdefaults__,
        "closure": inspect.getclosurevars(function).nonlocals,
        "globals": {name: value for name, value in used.items() if not _is_lib_module(value)},
    }
    open_.append(function)
    try:
        return {"code": _code(code)} | {n: _part(function, n, p, sink) for n, p in parts.items()}
    finally:
        open_.pop()


def _part(function: types.FunctionType, name: str, part: object, sink: codec.Sink) -> object:
    ordered = dict(sorted(part.items())) if isinstance(part, dict) else part
    try:
        return codec.encode(ordered, sink)
    except ValueError as error:
        raise ValueError(
            f"cannot hash the {name} of {function.__qualname__}: {error}. Move the function to a "
            "module of lib, or hand over what it needs as arguments"
        ) from None


def _code(code: CodeType) -> list:
    """Bytecode, constants and names, without file name and line numbers."""
    constants = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _constant(value: object) -> str:
    # The order of a frozenset depends on the process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _in_lib(module: str) -> bool:
    return module.split(".")[0] == "lib"


def _is_lib_module(value: object) -> bool:
    return isinstance(value, types.ModuleType) and _in_lib(value.__name__)


def _lib_names(code: CodeType, outer: dict[str, object]) -> Iterator[str]:
    """`module:definition` of what bytecode takes from modules of lib, global or imported inside."""
    for part in _nested(code):
        steps = [(step.opname, step.argval) for step in dis.get_instructions(part)]
        for k, (operation, name) in enumerate(steps):
            rest = steps[k + 1 :]
            if operation in ("LOAD_GLOBAL", "LOAD_NAME") and _is_lib_module(outer.get(name)):
                taken = _run_of(rest, "LOAD_ATTR", "LOAD_METHOD")
                yield _resolved(outer[name].__name__, taken)
            elif operation == "IMPORT_NAME" and _in_lib(name):
                taken = _run_of([s for s in rest if "STORE" not in s[0]], "IMPORT_FROM")
                yield from (_resolved(name, [item]) for item in taken) if taken else [f"{name}:"]


def _run_of(steps: list[tuple[str, object]], *operations: str) -> list[str]:
    """What the first steps name, as long as they are one of the operations."""
    return [name for _, name in itertools.takewhile(lambda step: step[0] in operations, steps)]


def _resolved(module: str, attributes: list[str]) -> str:
    found = _library.resolve([*module.split("."), *attributes])
    return ":".join(found[:2]) if found else f"{module}:"


def _moved_freely(name: str) -> str:
    """A name that stays when the definition moves, and tells two of the same name apart."""
    module, _, qualname = name.partition(":")
    if not _in_lib(module):
        return name
    top = qualname.split(".")[0]
    return " ".join([qualname, *(unit.digest for unit in _library.units((module, top)).values())])


def _source_digest(names: Iterable[str]) -> str:
    """Digest of the definitions behind the names, of lib and of other modules that lie in files."""
    references = []
    for module, _, qualname in (name.partition(":") for name in sorted(names)):
        path = getattr(sys.modules.get(module), "__file__", None) or ""
        if not _in_lib(module) and path.endswith(".py") and module.split(".")[0] not in VERSIONED:
            _library.others[module] = Path(path)
        reference = module, qualname.split(".")[0]
        references.append(reference if _library.units(reference) else (module, ""))
    closure = _library.closure(references)
    for (module, name), digest in closure.parts.items():
        if _first_seen.setdefault((module, name), digest) != digest:
            # The code in memory may be older than the file: its results must not pass for new ones.
            what = module if name == digests.ALWAYS else f"{module}.{name}"
            raise ValueError(f"{what} was edited after this session used it: restart the kernel")
    return closure.digest


def _model_names(tree: object) -> set[str]:
    """Strings of a tree that name a folder of weights."""
    if isinstance(tree, str):
        return {tree} if 0 < len(tree) < 200 and digests.weights_folder(tree) else set()
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return set().union(*map(_model_names, items))


@functools.cache
def _versions() -> dict[str, str]:
    lock = session.root() / "requirements.lock"
    own = "{}.{}".format(*sys.version_info), digests.file_sha256(lock) if lock.is_file() else ABSENT
    return dict(zip(("python", "lock"), own, strict=True)) | {n: _version(n) for n in VERSIONED}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _digest(tree: object, arrays: list[np.ndarray]) -> str:
    """SHA-256 of a tree and its arrays: kinds, shapes and bytes."""
    parts = [json.dumps(tree, sort_keys=True)]
    for array in arrays:
        parts += [f"{array.dtype.str}{array.shape}", np.ascontiguousarray(array).tobytes()]
    return digests.sha256(*parts)


def _write(entry: Path, tree: object, arrays: list[np.ndarray]) -> None:
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    checksum = np.array(_digest([entry.stem, tree], arrays))
    named = {f"array{index}": array for index, array in enumerate(arrays)}
    np.savez(buffer, tree=text, sha256=checksum, **named)
    session.write_atomically(entry, buffer.getvalue())


def _read(entry: Path) -> tuple[object, list[np.ndarray]] | None:
    """Tree and arrays of a sound entry; None, and the file gone, otherwise."""
    if not entry.is_file():
        return None
    try:
        with np.load(entry, allow_pickle=False) as stored:
            tree = json.loads(stored["tree"].tobytes())
            arrays = [stored[f"array{index}"] for index in range(len(stored.files) - 2)]
            if str(stored["sha256"]) == _digest([entry.stem, tree], arrays):
                return tree, arrays
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # every one of them means: not the bytes that were written
    where = f"{entry.parent.name}/{entry.name}"
    warnings.warn(f"cache entry {where} is corrupt: deleted, computed anew", stacklevel=3)
    entry.unlink(missing_ok=True)
    return None
