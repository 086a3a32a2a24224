"""The normal form of Python source: what is left of it without files, comments, docstrings, types.

A reference to a definition of a known module becomes its bare final name, however it was imported;
other imported names become their full dotted name. See `digests` for the rule this serves.
"""

import ast
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

LOCAL = None  # a name that a function, a class or a cell binds itself
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)
IMPORTS = (ast.Import, ast.ImportFrom)
UNREAD = {"ctx", "type_comment", "kind"}

Reference = tuple[str, str]  # module and definition; "" for the module as a whole
Resolve = Callable[[list[str]], tuple[str, str, list[str]] | None]


@dataclass
class Source:
    """A parsed file: its definitions by name, other statements, and what its imports bind."""

    name: str
    package: str = ""
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    rest: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)


def parse(text: str, name: str, package: str = "", *, cells: bool = False) -> Source:
    """Read a file; the code of notebook `cells` has no definitions, all of it is run."""
    source, tree = Source(name, package), ast.parse(text)
    for key, target in _bindings(tree.body, package).items():
        source.stored.add(key) if target is LOCAL else source.imports.update({key: target})
    for node in _own_nodes(tree.body):
        if isinstance(node, IMPORTS):
            source.stars += [t for key, t in _imported(node, package).items() if key == "*"]
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            source.stored.add(node.id)
    for statement in tree.body:
        names = [] if cells else _defined(statement)
        for key in names:
            source.definitions.setdefault(key, []).append(statement)
        if not names and not _never_runs(statement):
            source.rest.append(statement)
    return source


def _defined(statement: ast.stmt) -> list[str]:
    """Names that a top-level definition or assignment binds; [] for any other statement."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return [statement.name]
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    flat = [t for top in targets for t in (top.elts if isinstance(top, ast.Tuple) else [top])]
    return [t.id for t in flat] if all(isinstance(t, ast.Name) for t in flat) else []


def _never_runs(statement: ast.stmt) -> bool:
    """Imports, docstrings, and what only a script or a type checker runs."""
    if isinstance(statement, ast.If):
        names = {n.id for n in ast.walk(statement.test) if isinstance(n, ast.Name)}
        return bool(names & {"__name__", "TYPE_CHECKING"})
    return isinstance(statement, (*IMPORTS, ast.Pass)) or _is_text(statement)


def _is_text(statement: ast.AST) -> bool:
    value = getattr(statement, "value", None)
    return (
        isinstance(statement, ast.Expr)
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
    )


def _refuses(statement: ast.AST) -> bool:
    """`if ...: raise ValueError(...)`, or a TypeError, and nothing else."""
    if not isinstance(statement, ast.If) or statement.orelse or len(statement.body) != 1:
        return False
    if any(isinstance(node, ast.NamedExpr) for node in ast.walk(statement.test)):
        return False
    raised = getattr(getattr(statement.body[0], "exc", None), "func", None)
    return getattr(raised, "id", "") in ("ValueError", "TypeError")


def _after_refusals(body: list) -> Iterator[ast.AST]:
    """The body of a function from the first statement on that does more than refuse arguments."""
    return itertools.dropwhile(lambda node: _refuses(node) or _is_text(node), body)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """What an import statement binds: {local name: dotted name}."""
    if isinstance(node, ast.Import):
        first = ((alias.asname, alias.name, alias.name.split(".")[0]) for alias in node.names)
        return {asname or top: name if asname else top for asname, name, top in first}
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    base = ".".join([*parents * bool(node.level), *filter(None, [node.module])])
    return {
        alias.asname or alias.name: base if alias.name == "*" else f"{base}.{alias.name}"
        for alias in node.names
    }


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of one scope; nested scopes are named, not entered."""
    waiting = list(reversed(list(nodes)))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, SCOPES):
            waiting += reversed(list(ast.iter_child_nodes(node)))


def _bindings(nodes: Iterable[ast.AST], package: str) -> dict[str, str | None]:
    """Names that a scope binds: the dotted name of an import, else LOCAL."""
    found: dict[str, str | None] = {}
    outer: set[str] = set()
    for node in _own_nodes(nodes):
        if isinstance(node, IMPORTS):
            found |= _imported(node, package)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.setdefault(node.id, LOCAL)
        elif isinstance(name := getattr(node, "name", None), str) and not isinstance(
            node, ast.alias
        ):
            found.setdefault(name, LOCAL)  # functions, classes, caught errors, patterns
    return {name: target for name, target in found.items() if name not in outer and name != "*"}


class Reader:
    """Turns statements of a source into their normal form and collects what they refer to."""

    def __init__(self, source: Source, resolve: Resolve) -> None:
        self.source, self.resolve = source, resolve
        self.references: dict[Reference, None] = {(star, ""): None for star in source.stars}
        self.scopes: list[tuple[bool, dict[str, str | None]]] = []

    def form(self, node: object) -> object:
        """Return the normal form: nested lists of plain values, the same for every Python."""
        if isinstance(node, list):
            kept = (n for n in node if not isinstance(n, IMPORTS) and not _is_text(n))
            return [self.form(item) for item in kept]
        if not isinstance(node, ast.AST):
            return node
        if isinstance(node, ast.Constant):
            return [type(node.value).__name__, repr(node.value)]
        if isinstance(node, ast.JoinedStr):  # some versions of Python end a format with ""
            return [
                "JoinedStr",
                *(self.form(v) for v in node.values if getattr(v, "value", 1) != ""),
            ]
        if isinstance(node, ast.Name | ast.Attribute):
            return self._reference(node)
        if isinstance(node, (*FUNCTIONS, ast.Lambda)):
            return self._function(node)
        if isinstance(node, ast.ClassDef):
            head = [self.form(part) for part in (node.decorator_list, node.bases, node.keywords)]
            counted = [part for part in node.body if getattr(part, "name", "") != "__repr__"]
            body = self._within(True, _bindings(counted, self.source.package), counted)
            return ["ClassDef", node.name, *head, body]
        if isinstance(node, COMPREHENSIONS):
            first = self.form(node.generators[0].iter)  # is read in the scope around
            own = _bindings([g.target for g in node.generators], "")
            return [first, self._within(False, own, node, self._fields)]
        return self._fields(node)

    def _fields(self, node: ast.AST) -> list:
        parts = ((name, value) for name, value in ast.iter_fields(node) if name not in UNREAD)
        return [type(node).__name__, *([n, self.form(v)] for n, v in parts if v not in (None, []))]

    def _within(self, is_class: bool, names: dict, node: object, read: Callable | None = None):
        self.scopes.append((is_class, names))
        try:
            return (read or self.form)(node)
        finally:
            self.scopes.pop()

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list:
        """Name, decorators, arguments with defaults, body; annotations do not count."""
        a = node.args
        outer = [getattr(node, "decorator_list", []), a.defaults, a.kw_defaults]
        rows = [a.posonlyargs, a.args, filter(None, [a.vararg]), a.kwonlyargs]
        names = [[item.arg for item in row] for row in (*rows, filter(None, [a.kwarg]))]
        body = node.body if isinstance(node.body, list) else [node.body]
        own = _bindings(body, self.source.package) | dict.fromkeys(sum(names, []), LOCAL)
        head = [type(node).__name__, getattr(node, "name", ""), *map(self.form, outer), names]
        return [*head, self._within(False, own, list(_after_refusals(body)))]

    def _origin(self, name: str) -> str | None:
        """Dotted name that `name` stands for here, LOCAL when this scope or a cell binds it."""
        for depth, (is_class, names) in enumerate(reversed(self.scopes)):
            if name in names and (depth == 0 or not is_class):
                return names[name]
        if name in self.source.definitions:
            return f"{self.source.name}.{name}"
        return self.source.imports.get(name, LOCAL)

    def _reference(self, node: ast.Name | ast.Attribute) -> list:
        base, attributes = node, []
        while isinstance(base, ast.Attribute):
            base, attributes = base.value, [base.attr, *attributes]
        origin = self._origin(base.id) if isinstance(base, ast.Name) else LOCAL
        if origin is LOCAL or isinstance(base.ctx, ast.Store | ast.Del):
            start = ["Name", base.id] if isinstance(base, ast.Name) else [self.form(base)]
            return [*start, *attributes]
        parts = [*origin.split("."), *attributes]
        found = self.resolve(parts)
        if found is None:
            return ["Name", ".".join(parts)]
        module, name, further = found
        if not name and base.id in self.source.stored:  # a cell gave the name of a module away
            return ["Name", base.id, *attributes]
        self.references[module, name] = None
        return ["Name", name, *further]
