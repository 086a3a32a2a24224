"""What counts as a change: one rule, for the stamps of notebooks and the keys of the cache.

The code behind a cell or a function is its *closure*: the top-level definitions of `lib`
(functions, classes, assigned names) that it refers to, those that they refer to, and so on. The
digest of a definition is that of its syntax tree, in which

- comments, formatting, docstrings, import statements and annotations of arguments do not count;
- nor do the arguments that a function refuses before it does anything else (`if ...: raise
  ValueError`, or TypeError): a run that was made has passed them. So a condition must change
  nothing, and an answer that a notebook draws from a refusal (`except ValueError`) must come from
  one further down, which counts;
- nor does `__repr__`, by which a value shows itself to a reader;
- a reference to a definition of `lib` is its bare final name: `phases.crossings`, `crossings` after
  `from lib.slices.phases import crossings`, and the same handed on by a room's face read alike.

So moving a definition to another file, renaming a module, or editing what is not reached changes
nothing; editing a helper far down, a constant, a default, a decorator, a method changes all above.
The digest of a closure is that of the sorted (name, digest) of its definitions, each with the
digests of what it refers to, in order: two functions of one name cannot change places unseen.
Top-level statements that define nothing, and definitions that a function of `lib` decorates, count
as soon as anything of their module does. Where a reference cannot be followed (a module as a value,
`getattr` on it, a star, an attribute that no statement binds) the whole module counts. Names put
together at run time, in strings, are not seen.

`KEEPERS` are not followed: they keep numbers and make none, by the laws of tests/kit. The list of
claims counts, in a stamp, by the bounds of the notebook's own claims. Cells count like definitions,
magics as the Python that IPython makes of them. Weights count by safetensors, configurations and
tokenizers, not by cards and metrics.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from lib.kit import session, syntax
from lib.kit.syntax import Reference

LIBRARY = Path(__file__).resolve().parents[1]
KEEPING = "cache claims codec digests pools progress session stamps syntax wording"
KEEPERS = frozenset(f"lib.kit.{name}" for name in KEEPING.split())
ALWAYS = "*"  # what counts of a module as soon as anything of it does
WEIGHTS = (".safetensors", ".json", ".txt", ".model")
NO_WEIGHTS = ("metrics.json", "provenance.json")


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


@dataclass(frozen=True)
class Unit:
    """A definition, or the statements of a module that define nothing: digest and references."""

    digest: str
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Closure:
    """The definitions behind some code: {(module, name): digest}, and one digest of them all."""

    parts: dict[Reference, str]
    digest: str

    def names(self) -> dict[str, str]:
        """Return {bare name: short digest}, which no move changes."""
        found: dict[str, list[str]] = {}
        for (_, name), digest in self.parts.items():
            found.setdefault(name, []).append(digest)
        return {name: sha256(*sorted(found[name]))[:12] for name in sorted(found)}


class Library:
    """The modules of a folder named lib, and `others` by file, read anew when a file changes."""

    def __init__(self, folder: Path = LIBRARY, others: Mapping[str, Path] | None = None) -> None:
        self.folder, self.others = folder, dict(others or {})
        self._forget()

    def _forget(self) -> None:
        self._sources: dict[str, syntax.Source] = {}
        self._states: dict[Path, tuple[int, int]] = {}
        self._units: dict[Reference, dict[str, Unit]] = {}
        self._closures: dict[frozenset[Reference], Closure] = {}

    def module_file(self, name: str) -> Path | None:
        """Return the source file of a module, or None when the name is no module known here."""
        if name in self.others or name.split(".")[0] != "lib":
            return self.others.get(name)
        stem = self.folder.joinpath(*name.split(".")[1:])
        candidates = (stem / "__init__.py", stem.with_name(stem.name + ".py"))
        return next((path for path in candidates if path.is_file()), None)

    def _source(self, name: str) -> syntax.Source | None:
        if name not in self._sources:
            path = self.module_file(name)
            if path is None:
                return None
            self._states[path] = _state(path)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self._sources[name] = syntax.parse(path.read_text(encoding="utf-8"), name, package)
        return self._sources[name]

    def resolve(self, parts: list[str]) -> tuple[str, str, list[str]] | None:
        """Return (module, definition, further attributes) of a dotted name; None if not known here.

        The definition is "" where the name stands for the module, or for no definition of it.
        """
        whole = ".".join(parts)
        start = next((name for name in self.others if whole.startswith(f"{name}.")), parts[0])
        source = self._source(start)
        if source is None:
            return None
        for k, attribute in enumerate(parts[start.count(".") + 1 :], start.count(".") + 1):
            handed_on = source.imports.get(attribute)
            if attribute in source.definitions:
                return source.name, attribute, parts[k + 1 :]
            if handed_on not in (None, f"{source.name}.{attribute}"):
                return self.resolve([*handed_on.split("."), *parts[k + 1 :]])
            below = self._source(f"{source.name}.{attribute}")
            if below is None:
                return source.name, "", parts[k:]
            source = below
        return source.name, "", []

    def read(self, statements: list[ast.stmt], source: syntax.Source) -> Unit:
        """Return the digest of statements of a source, and the definitions they refer to."""
        reader = syntax.Reader(source, self.resolve)
        form = json.dumps(reader.form(statements))
        return Unit(sha256(form), tuple(reader.references))

    def units(self, reference: Reference) -> dict[str, Unit]:
        """Return {name: unit} of a definition, of a whole module (""), or of what counts ALWAYS."""
        if reference not in self._units:
            self._units[reference] = dict(self._read_units(*reference))
        return self._units[reference]

    def _read_units(self, module: str, name: str) -> Iterator[tuple[str, Unit]]:
        source = self._source(module)
        if source is None or module in KEEPERS:
            return
        for key, statements in source.definitions.items():
            if name in ("", key) or (name == ALWAYS and self._is_decorated(statements, source)):
                yield key, self.read(statements, source)
        if name in ("", ALWAYS) and source.rest:
            yield ALWAYS, self.read(source.rest, source)

    def _is_decorated(self, statements: list[ast.stmt], source: syntax.Source) -> bool:
        """Whether a function of lib decorates a definition, and may so keep it in a table."""
        marks = [mark for s in statements for mark in getattr(s, "decorator_list", [])]
        return bool(marks and self.read(marks, source).references)

    def refresh(self) -> None:
        """Forget what was read when one of the files has changed since."""
        if any(not path.is_file() or _state(path) != s for path, s in self._states.items()):
            self._forget()

    def closure(self, references: Iterable[Reference]) -> Closure:
        """Return all definitions that the references lead to, and the digest of them all."""
        self.refresh()
        asked = frozenset(references)
        if asked not in self._closures:
            self._closures[asked] = self._follow(asked)
        return self._closures[asked]

    def _follow(self, references: frozenset[Reference]) -> Closure:
        found: dict[Reference, Unit] = {}
        waiting = sorted(references)
        while waiting:
            module, name = waiting.pop()
            for key, unit in self.units((module, name)).items():
                if (module, key) not in found:
                    found[module, key] = unit
                    waiting += [*unit.references, *((m, ALWAYS) for m in _with_parents(module))]
        parts = {key: unit.digest for key, unit in sorted(found.items())}
        deep = sorted((key[1], self.deep(unit)) for key, unit in found.items())
        return Closure(parts, sha256(json.dumps(deep)))

    def deep(self, unit: Unit) -> str:
        """Return the digest of a unit together with those of what it refers to, in order."""
        return sha256(unit.digest, self.order(unit))

    def order(self, unit: Unit) -> str:
        """Return the digest of what a unit refers to, in order of appearance."""
        rows = (self.units(reference).values() for reference in unit.references)
        return sha256(*(sha256(*sorted(below.digest for below in row)) for row in rows))

    def cells(self, cells: Iterable[str]) -> Unit:
        """Return the digest of notebook cells and the definitions of lib they refer to."""
        self.refresh()
        transform = TransformerManager().transform_cell  # turns magics into Python
        python = [transform(cell) for cell in cells]
        source = syntax.parse("\n".join(python), "", cells=True)
        read = [self.read(ast.parse(cell).body, source) for cell in python]
        references = tuple(r for unit in read for r in unit.references)
        return Unit(sha256(*(unit.digest for unit in read)), references)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _with_parents(module: str) -> Iterator[str]:
    while module:
        yield module
        module = module.rpartition(".")[0]


def weights_folder(name_or_path: str | Path) -> Path | None:
    """Return the folder of safetensors files that a model name or path stands for, or None."""
    for folder in (session.root() / "models" / name_or_path, Path(name_or_path)):
        found = (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"))
        if folder.is_dir() and found:
            return folder
    return None


def weights(name_or_path: str | Path) -> str:
    """Return the content hash of a model folder: weights, configurations and tokenizers.

    Raises ValueError when neither models/NAME nor the path holds a safetensors file.
    """
    folder = weights_folder(name_or_path)
    if folder is None:
        raise ValueError(
            f"no weights at {str(name_or_path)!r}: expected a folder with safetensors files, "
            "or the name of one under models/"
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.suffix in WEIGHTS and path.name not in NO_WEIGHTS]
    return _weights(folder, tuple((path, _state(path)) for path in files))


@functools.cache
def _weights(folder: Path, states: tuple) -> str:
    return sha256(*(s for f, _ in states for s in (str(f.relative_to(folder)), file_sha256(f))))
