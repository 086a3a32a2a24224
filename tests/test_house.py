"""The house: which room knows which, drawn from the imports, and nothing that nobody reaches.

Imports inside functions count, so that no circle hides behind a deferred one.
"""

import ast
import graphlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = 400  # of one file

KNOWS = {  # beside `intervals`, which every room may use
    "intervals": set(),
    "physics": set(),
    "geometry": set(),
    "diffusion": set(),
    "kit": set(),
    "slices": {"diffusion"},
    "faces": {"diffusion"},
    "garments": {"diffusion"},
    "hspace": {"diffusion", "faces"},
    "svd": {"diffusion", "hspace", "faces"},
    "training": {"diffusion", "faces", "garments", "hspace"},
}
# all of `diffusion` that families need: to load a model, and to read a text as it does
LOADER = {"lib.diffusion.models", "lib.diffusion.folders", "lib.diffusion.prompts"}

KEPT = {  # reached by tests alone, and why
    "lib.faces.judge.directional_similarity": "a contract of the faces",
    "lib.faces.judge.features": "a contract of the faces",
    "lib.geometry.metric.of": "what the README shows for a family of one's own",
    "lib.kit.cache.key": "a contract: what decides whether a kept result is taken",
    "lib.physics.ising_onsager.onsager_free_energy": "a contract, and oracle of the samplers",
}


class Source(NamedTuple):
    """One file of code: its dotted name, syntax tree, and what its imported names stand for."""

    name: str
    tree: ast.Module
    face: bool
    lines: int

    @property
    def room(self) -> str:
        return self.name.split(".")[1] if "." in self.name else ""


def library():
    """{dotted name: source} of every file of `lib`."""
    found = {}
    for path in sorted((ROOT / "lib").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        face = parts[-1] == "__init__"
        name, text = ".".join(parts[:-1] if face else parts), path.read_text()
        found[name] = Source(name, ast.parse(text), face, len(text.splitlines()))
    return found


LIB = library()


def notebook_source(path):
    """The code cells of a notebook, without the lines that only IPython understands."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    lines = "\n".join("".join(c["source"]) for c in cells).splitlines()
    return "\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in lines)


def users():
    """Sources outside `lib` that reach into it: lessons, evidence, benchmarks, documents."""
    texts = {p: notebook_source(p) for p in sorted((ROOT / "notebooks").rglob("*.ipynb"))}
    texts |= {p: p.read_text() for d in ("benchmarks", "book") for p in (ROOT / d).glob("*.py")}
    return [
        Source(str(p.relative_to(ROOT)), ast.parse(text), False, 0) for p, text in texts.items()
    ]


def imports(tree):
    """[(dotted name, alias or None)] of what the import statements of a tree bring from `lib`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, a.asname) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found += [(f"{node.module}.{a.name}", a.asname or a.name) for a in node.names]
    return [(name, alias) for name, alias in found if name.split(".")[0] == "lib"]


def module_of(name):
    """The file that a dotted name belongs to: itself, or the module that it is taken from."""
    while name not in LIB:
        name = name.rpartition(".")[0]
    return name


def edges(source):
    """Files of `lib` that a source imports."""
    return {module_of(name) for name, _ in imports(source.tree)} - {source.name, "lib"}


def test_each_room_knows_those_it_may_and_no_other():
    arrows = {(s.room, to.split(".")[1], s.name, to) for s in LIB.values() for to in edges(s)}
    allowed = {(a, b) for a, known in KNOWS.items() for b in {*known, a, "intervals"}}
    wrong = [f"{name} imports {to}" for a, b, name, to in sorted(arrows) if (a, b) not in allowed]
    assert not wrong, "\n".join(wrong)
    assert {s.room for s in LIB.values()} - {""} <= set(KNOWS)


@pytest.mark.parametrize("family", ["faces", "garments"])
def test_a_family_of_images_needs_no_more_of_diffusion_than_its_loader(family):
    own = [s for s in LIB.values() if s.room == family]
    taken = {to for s in own for to in edges(s) if to.startswith("lib.diffusion")}
    assert taken <= LOADER


def test_no_file_is_in_a_circle_of_imports():
    graph = {s.name: edges(s) for s in LIB.values()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_files_of_a_room_import_each_other_and_not_its_face():
    faces = {s.name for s in LIB.values() if s.face}
    wrong = [s.name for s in LIB.values() if f"lib.{s.room}" in edges(s) & faces]
    assert not wrong, "\n".join(wrong)


def test_a_face_only_hands_names_on():
    for source in (s for s in LIB.values() if s.face and s.room):
        for node in source.tree.body:
            text = ast.unparse(node)
            handed = isinstance(node, ast.ImportFrom) and node.module.startswith(source.name + ".")
            listed = isinstance(node, ast.Assign) and text.startswith("__all__ =")
            assert handed or listed or isinstance(node, ast.Expr), f"{source.name}: {text}"


def aliases(source):
    """{local name: dotted name} of what a source imports from `lib`."""
    return {alias or "lib": name if alias else "lib" for name, alias in imports(source.tree)}


def dotted(node):
    """The dotted text of a name or a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if base else ""


def uses(node, known):
    """Dotted `lib` names that a piece of code refers to, by what its local names stand for."""
    found = set()
    for part in ast.walk(node):
        first, _, rest = dotted(part).partition(".")
        if first in known:
            found.add(known[first] + ("." + rest if rest else ""))
    return found


def test_no_private_name_is_taken_across_files():
    wrong = []
    for source in (*LIB.values(), *users()):
        names = uses(source.tree, aliases(source)) | {name for name, _ in imports(source.tree)}
        for name in sorted(names):
            rest = name.removeprefix(module_of(name)).strip(".").split(".")[0]
            private = rest.startswith("_") and not rest.startswith("__")
            wrong += [f"{source.name} takes {name}"] * private
    assert not wrong, "\n".join(wrong)


def test_no_file_is_longer_than_a_reader_bears():
    assert {s.name: s.lines for s in LIB.values() if s.lines > LINES} == {}


def defined(node):
    """Names that a statement at the top of a file defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
    return [name for name in names if not name.startswith("__")]


def is_command(node):
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def commands():
    """Modules that the Makefile runs, or that a reader is told to run."""
    told = [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text() for path in told)
    paths = [p.replace("/", ".").removesuffix(".py") for p in re.findall(r"lib/\S+\.py", text)]
    return {*re.findall(r"-m (lib[\w.]+)", text), *paths}


def graph():
    """{definition of `lib`: what it refers to}, what names handed on stand for, and the roots.

    Roots are what notebooks, benchmarks and commands refer to, and statements at the top of a file
    that define nothing, such as a check at import.
    """
    refers, handed, roots = {}, {}, set()
    for source in LIB.values():
        own = {n: f"{source.name}.{n}" for node in source.tree.body for n in defined(node)}
        known = aliases(source)
        handed |= {f"{source.name}.{alias}": name for alias, name in known.items()}
        for node in source.tree.body if not source.face else ():
            used, names = uses(node, {**known, **own}), defined(node)
            refers |= {own[name]: used - {own[name]} for name in names}
            if not names and (not is_command(node) or source.name in commands()):
                roots |= used
    roots |= {name for user in users() for name in uses(user.tree, aliases(user))}
    return refers, handed, roots


def follow(refers, handed, roots):
    """The definitions that roots lead to."""
    waiting, found = list(roots), set()
    while waiting:
        name = waiting.pop()
        while name not in refers and name not in handed and "." in name:  # a method, an entry
            name = name.rpartition(".")[0]
        if name not in found:
            found.add(name)
            waiting += {*refers.get(name, ()), *filter(None, [handed.get(name)])}
    return found & set(refers)


def test_nothing_is_there_that_only_tests_reach():
    refers, handed, roots = graph()
    unreached = set(refers) - follow(refers, handed, roots | set(KEPT))
    assert not unreached, "\n".join(["reached by nothing but tests:", *sorted(unreached)])


def test_each_exception_is_there_and_needed():
    refers, handed, roots = graph()
    assert set(KEPT) <= set(refers)
    needed = set(KEPT) - follow(refers, handed, roots)
    assert needed == set(KEPT), "these are reached by now: take them off the list"
