"""Which `lib` modules a piece of code uses, and digests of source files and weights.

Import statements are read from the syntax tree, wherever they stand; imports made by computed names
are not seen. Comments and formatting do not enter a digest.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from lib.kit import session

LIBRARY = Path(__file__).resolve().parents[1]


def sha256(*parts: bytes | str) -> str:
    """Return the hexadecimal SHA-256 of the parts, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the bytes of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lib_imports(tree: ast.AST, package: str = "") -> set[str]:
    """Return the dotted `lib` names that the import statements of `tree` may load.

    `package` is the package that relative imports start from.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents * bool(node.level), *filter(None, [node.module])])
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return lib_names(names)


def lib_names(names: Iterable[str]) -> set[str]:
    """Return those of the dotted names that lie in `lib`."""
    return {name for name in names if name.split(".")[0] == "lib"}


@functools.cache
def _scan(path: Path, package: str, _changed: tuple[int, int]) -> tuple[str, frozenset[str]]:
    """Digest of a file's syntax tree, and the `lib` names it imports."""
    tree = ast.parse(path.read_text())
    return sha256(repr(_written(tree))), frozenset(lib_imports(tree, package))


def _written(node: object) -> object:
    """Syntax tree as nested tuples: without empty fields it is the same in every Python."""
    if isinstance(node, ast.AST):
        fields = ((name, _written(value)) for name, value in ast.iter_fields(node))
        return type(node).__name__, *(
            (name, value) for name, value in fields if value not in (None, ())
        )
    return tuple(map(_written, node)) if isinstance(node, list) else node


def scan(path: Path, package: str = "") -> tuple[str, frozenset[str]]:
    """Return the digest of a source file and the `lib` names it imports."""
    state = path.stat()
    return _scan(path, package, (state.st_mtime_ns, state.st_size))


def module_file(name: str, library: Path = LIBRARY) -> Path | None:
    """Return the source file of a `lib` module, or None when the name is no module."""
    stem = library.joinpath(*name.split(".")[1:])
    candidates = (stem / "__init__.py", stem.with_name(stem.name + ".py"))
    return next((path for path in candidates if path.is_file()), None)


def closure(names: Iterable[str], library: Path = LIBRARY) -> dict[str, str]:
    """Return {module: digest} for the named `lib` modules and all `lib` modules they import."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = module_file(name, library)
        if name in found or path is None:
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name], imported = scan(path, package)
        waiting += [*imported, name.rpartition(".")[0] or "lib"]
    return dict(sorted(found.items()))


def weights_folder(name_or_path: str | Path) -> Path | None:
    """Return the folder of safetensors files that a model name or path stands for, or None."""
    for folder in (session.root() / "models" / name_or_path, Path(name_or_path)):
        found = (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"))
        if folder.is_dir() and found:
            return folder
    return None


def weights(name_or_path: str | Path) -> str:
    """Return the content hash of a model folder: names and bytes of all its files.

    Raises:
        ValueError: when neither models/NAME nor the path holds a safetensors file.
    """
    folder = weights_folder(name_or_path)
    if folder is None:
        raise ValueError(
            f"no weights at {str(name_or_path)!r}: expected a folder with safetensors files, "
            "or the name of one under models/"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    changed = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _weights(folder, changed)


@functools.cache
def _weights(folder: Path, changed: tuple) -> str:
    files = [path for path, *_ in changed]
    return sha256(*(s for f in files for s in (str(f.relative_to(folder)), file_sha256(f))))
