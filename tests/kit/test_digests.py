"""Digests follow the definitions that are used, wherever they stand, and nothing else."""

import ast
import json

import pytest

from lib.kit import digests, session, syntax

FILES = {
    "__init__": "",
    "room/__init__": '"""A face."""\nfrom lib.room.paths import walk\n',
    "room/paths": (
        "import numpy as np\nfrom lib.room import shapes\nfrom lib.room.shapes import SCALE\n\n"
        "LIMIT = 3\n\n\ndef walk(x, step=1):\n    '''Walk.'''\n"
        "    return shapes.square(x) + LIMIT\n"
        "\n\ndef other(x):\n    return np.sum(x) * SCALE\n"
    ),
    "room/shapes": (
        "from functools import cache\n\nSCALE = 2\n\n\n@cache\ndef square(x):\n"
        "    return Box(x).area()\n\n\nclass Box:\n    def __init__(self, x: float):\n"
        "        self.x = x\n\n    def area(self):\n        return SCALE * self.x\n"
    ),
}
CELLS = ["from lib import room", "# a remark\nroom.walk(3)", "%matplotlib inline"]


class Folder:
    """A small lib on disk, edited as text."""

    def __init__(self, folder):
        self.folder = folder
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name, text):
        path = self.folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name, old, new):
        path = self.folder / f"{name}.py"
        assert old in path.read_text()
        self.write(name, path.read_text().replace(old, new))

    def stamp(self, cells=CELLS):
        library = digests.Library(self.folder)
        unit = library.cells(cells)
        return unit.digest, library.closure(unit.references).digest, library.order(unit)

    def names(self, cells=CELLS):
        library = digests.Library(self.folder)
        return set(library.closure(library.cells(cells).references).names())


@pytest.fixture
def lib(tmp_path):
    return Folder(tmp_path / "lib")


def test_the_closure_holds_the_definitions_that_are_reached(lib):
    assert lib.names() == {"walk", "LIMIT", "square", "Box", "SCALE"}


CHANGES = {
    "helper two calls deep": ("room/shapes", "Box(x).area()", "-Box(x).area()"),
    "constant": ("room/shapes", "SCALE = 2", "SCALE = 3"),
    "own constant": ("room/paths", "LIMIT = 3", "LIMIT = 4"),
    "method": ("room/shapes", "SCALE * self.x", "SCALE + self.x"),
    "decorator": ("room/shapes", "@cache\n", ""),
    "default": ("room/paths", "step=1", "step=2"),
    "statement that defines nothing": ("room/shapes", "SCALE = 2", "SCALE = 2\nprint('hello')"),
    "refusal of what was computed": (
        "room/shapes",
        "        self.x = x\n",
        "        self.x = x\n        if x < 0:\n            raise ValueError('x')\n",
    ),
    "refusal that does more": (
        "room/shapes",
        "        self.x = x\n",
        "        if x < 0:\n            raise ValueError('x')\n        else:\n            x += 1\n"
        "        self.x = x\n",
    ),
    "refusal that binds a name": (
        "room/shapes",
        "        self.x = x\n",
        "        if (x := -x) < 0:\n            raise ValueError('x')\n        self.x = x\n",
    ),
    "other errors": (
        "room/shapes",
        "        self.x = x\n",
        "        if x < 0:\n            raise StopIteration\n        self.x = x\n",
    ),
    "second assignment": ("room/shapes", "SCALE = 2", "SCALE = 2\nSCALE += 1"),
    "where a name of numpy comes from": ("room/shapes", "functools", "mytools"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_edit_of_what_is_reached_changes_the_stamp(lib, change):
    before = lib.stamp()
    lib.edit(*change)
    assert lib.stamp() != before


NO_CHANGES = {
    "docstring": ("room/paths", "'''Walk.'''", "'''Go.'''"),
    "comment": ("room/shapes", "SCALE = 2", "SCALE = 2  # pixels"),
    "formatting": ("room/shapes", "SCALE * self.x", "(SCALE*self.x)"),
    "unrelated function": ("room/paths", "np.sum(x)", "np.max(x)"),
    "annotation of an argument": ("room/shapes", "x: float", "x: int"),
    "way of importing": ("room/paths", "import shapes\n", "import shapes as forms\n"),
    "import that nobody needs": ("room/shapes", "SCALE = 2", "import json\n\nSCALE = 2"),
    "arguments refused at once": (
        "room/paths",
        "'''Walk.'''\n",
        "'''Walk.'''\n    if x < 0:\n        raise ValueError(f'x is {other(x)}')\n",
    ),
    "script": ("room/shapes", "SCALE = 2", "if __name__ == '__main__':\n    print(1)\nSCALE = 2"),
}


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_an_edit_of_anything_else_does_not(lib, change):
    before = lib.stamp()
    if "forms" in change[2]:
        lib.edit("room/paths", "shapes.square", "forms.square")
    lib.edit(*change)
    assert lib.stamp() == before


def test_moving_a_function_to_another_file_changes_nothing(lib):
    before = lib.stamp()
    text = (lib.folder / "room/shapes.py").read_text()
    head, square, box = text.partition("@cache\n")[0], text[text.index("@cache") :], ""
    square, box = square[: square.index("class")], square[square.index("class") :]
    lib.write("room/shapes", "from lib.boxes import SCALE, Box\n" + head.split("SCALE")[0] + square)
    lib.write("boxes", "SCALE = 2\n\n\n" + box)
    assert lib.stamp() == before


def test_renaming_a_module_or_a_room_changes_nothing(lib):
    before = lib.stamp()
    (lib.folder / "room").rename(lib.folder / "house")
    (lib.folder / "house/shapes.py").rename(lib.folder / "house/forms.py")
    lib.edit("house/__init__", "lib.room", "lib.house")
    for old, new in (("lib.room", "lib.house"), ("shapes", "forms")):
        lib.edit("house/paths", old, new)
    cells = ["from lib import house", "house.walk(3)", "%matplotlib inline"]
    assert lib.stamp(cells) == before


@pytest.mark.parametrize(
    "cells",
    [
        ["from lib.room import walk", "walk(3)", "%matplotlib inline"],
        ["from lib.room.paths import walk as go", "go(3)", "%matplotlib inline"],
        ["import lib.room.paths", "lib.room.paths.walk(3)", "%matplotlib inline"],
    ],
)
def test_a_reference_reads_alike_however_it_was_imported(lib, cells):
    assert lib.stamp(cells) == lib.stamp()


@pytest.mark.parametrize("use", ["f(room)", "getattr(room, name)", "room.later(3)", "m = room"])
def test_a_module_that_cannot_be_followed_counts_as_a_whole(lib, use):
    cells = ["from lib.room import paths as room", use]
    assert {"walk", "other", "LIMIT"} <= lib.names(cells)
    before = lib.stamp(cells)
    lib.edit("room/paths", "np.sum(x)", "np.max(x)")
    assert lib.stamp(cells) != before


def test_a_star_brings_the_whole_module(lib):
    lib.write("all", "from lib.room.paths import *\n\n\ndef f(x):\n    return other(x)\n")
    assert "other" in lib.names(["from lib.all import f", "f(1)"])


def test_a_local_name_is_no_module(lib):
    lib.write("local", "from lib.room import paths\n\n\ndef f(paths):\n    return paths.other\n")
    assert lib.names(["from lib.local import f"]) == set()
    assert lib.names(["from lib.local import f", "f(1)"]) == {"f"}
    lib.write("local", "def f(x):\n    from lib.room import paths\n    return paths.other(x)\n")
    assert lib.names(["from lib import local", "local.f(1)"]) == {"f", "other", "SCALE"}


def test_a_name_that_a_cell_gave_away_is_no_module(lib):
    cells = ["from lib.room import paths", "paths.walk(1)", "paths = [1]\nprint(paths)"]
    assert "other" not in lib.names(cells)


def test_two_functions_of_one_name_cannot_change_places_unseen(lib):
    lib.write("a", "def f(x):\n    return x\n")
    lib.write("b", "def f(x):\n    return -x\n")
    cells = ["from lib import a, b", "a.f(1), b.f(2)"]
    swapped = ["from lib import a, b", "b.f(1), a.f(2)"]
    assert lib.stamp(cells)[:2] == lib.stamp(swapped)[:2]
    assert lib.stamp(cells)[2] != lib.stamp(swapped)[2]
    deep = "from lib import a, b\n\n\ndef g(x):\n    return {} + {}\n"
    lib.write("deep", deep.format("a.f(x)", "b.f(x)"))
    before = lib.stamp(["from lib import deep", "deep.g(1)"])
    lib.write("deep", deep.format("b.f(x)", "a.f(x)"))
    assert lib.stamp(["from lib import deep", "deep.g(1)"])[1] != before[1]


def test_what_a_function_of_lib_decorates_counts_with_its_module(lib):
    table = "from lib.room.paths import walk as put\n\n\n@put\ndef entry(x):\n    return x\n"
    lib.write("table", table + "\n\ndef find(x):\n    return x\n")
    assert "entry" in lib.names(["from lib import table", "table.find(1)"])


def test_how_a_value_shows_itself_does_not_count(lib):
    plain = "class Shown:\n    def size(self):\n        return 1\n"
    lib.write("shown", plain)
    before = lib.stamp(["from lib import shown", "shown.Shown()"])
    lib.write("shown", plain + "\n    def __repr__(self):\n        return 'one'\n")
    assert lib.stamp(["from lib import shown", "shown.Shown()"]) == before
    lib.write("shown", plain + "\n    def __str__(self):\n        return 'one'\n")
    assert lib.stamp(["from lib import shown", "shown.Shown()"]) != before


def test_what_keeps_numbers_is_not_followed():
    library = digests.Library()
    unit = library.cells(["from lib.kit import cache, plots", "cache.cached(plots.figure)"])
    modules = {module for module, _ in library.closure(unit.references).parts}
    assert "lib.kit.plots" in modules and not modules & digests.KEEPERS


def test_an_edit_is_seen_by_a_library_that_read_the_file_before(lib):
    library = digests.Library(lib.folder)
    before = library.closure([("lib.room.paths", "walk")])
    lib.edit("room/shapes", "SCALE = 2", "SCALE = 22")
    assert library.closure([("lib.room.paths", "walk")]) != before


@pytest.mark.parametrize(
    ("code", "package", "bound"),
    [
        ("import lib.a.b", "", {"lib": "lib"}),
        ("import lib.a.b as c", "", {"c": "lib.a.b"}),
        ("from lib.a import b as c", "", {"c": "lib.a.b"}),
        ("from . import b", "lib.a", {"b": "lib.a.b"}),
        ("from .b import c", "lib.a", {"c": "lib.a.b.c"}),
        ("from ..b import c", "lib.a", {"c": "lib.b.c"}),
        ("try:\n    import numpy as np\nexcept ImportError:\n    np = None", "", {"np": "numpy"}),
    ],
)
def test_imports_are_found_in_every_form(code, package, bound):
    assert syntax.parse(code, "lib.x", package).imports == bound


def test_every_file_of_lib_has_a_normal_form_that_holds_no_version():
    for path in sorted(digests.LIBRARY.rglob("*.py")):
        source = syntax.parse(path.read_text(), "lib.x")
        reader = syntax.Reader(source, lambda parts: None)
        form = json.dumps(reader.form(ast.parse(path.read_text()).body))
        assert '["ctx", [' not in form and '["Load"]' not in form


def form_of(text):
    tree = ast.parse(text).body
    return json.dumps(syntax.Reader(syntax.parse(text, "lib.x"), lambda parts: None).form(tree))


def test_a_normal_form_is_the_same_in_every_python():
    code = "def f(x, *, y=0):\n    return [x, (y := 2.5), f'{x:>{y}}!', None, ...][1:]\n"
    assert digests.sha256(form_of(code))[:16] == "fa999a731298be0d"


CONSTANTS = ["None", "0", "0.0", "False", "''", "b''", "()", "[]", "{}", "..."]


def test_constants_that_are_nothing_are_not_the_same_nothing():
    assert len({form_of(f"x = {constant}") for constant in CONSTANTS}) == len(CONSTANTS)


def test_weights_count_without_their_card_and_metrics(root):
    folder = session.root() / "models" / "tiny"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "merges.txt"):
        (folder / name).write_text("1")
    before = digests.weights("tiny")
    for name in ("README.md", "metrics.json"):
        (folder / name).write_text("words")
    assert digests.weights("tiny") == before
    for name in ("model.safetensors", "config.json", "tokenizer.json", "merges.txt"):
        (folder / name).write_text("22")
        assert digests.weights("tiny") != before, name
        (folder / name).write_text("1")
