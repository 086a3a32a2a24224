"""Digests follow the code that is used, and nothing else."""

import ast
import itertools

import pytest

from lib.kit import sources

CONSTANTS = ["None", "0", "0.0", "False", "''", "b''", "()", "[]", "{}", "..."]


@pytest.fixture
def used(copied_lib):
    def digests():
        return sources.closure(["lib.used"], copied_lib)

    return digests


def test_the_closure_holds_what_is_imported_by_what_is_imported(used):
    assert set(used()) == {"lib", "lib.used", "lib.deeper"}


def test_an_edit_of_a_used_function_changes_the_digests(used, copied_lib):
    before = used()
    (copied_lib / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    assert used() != before


def test_comments_formatting_and_unrelated_modules_do_not(used, copied_lib):
    before = used()
    deeper = copied_lib / "deeper.py"
    deeper.write_text("# a comment\n" + deeper.read_text().replace("2 * x", "2*x"))
    (copied_lib / "unrelated.py").write_text("def h(x):\n    return -x\n")
    assert used() == before


def test_a_digest_is_the_same_in_every_python(tmp_path):
    file = tmp_path / "code.py"
    file.write_text("def f(x, *, y=0):\n    return [x, (y := 2.5), f'{x}!', None, ...][1:]\n")
    assert sources.scan(file)[0][:16] == "af422aaa0b4f6dfc"


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(CONSTANTS, 2)))
def test_constants_that_are_nothing_are_not_the_same_nothing(tmp_path, one, other):
    digests = set()
    for index, constant in enumerate((one, other)):
        file = tmp_path / f"{index}.py"
        file.write_text(f"x = {constant}\n")
        digests.add(sources.scan(file)[0])
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("code", "package", "names"),
    [
        ("import lib.a.b", "", {"lib.a.b"}),
        ("from lib.a import b as c", "", {"lib.a", "lib.a.b"}),
        ("def f():\n    from lib import a", "", {"lib", "lib.a"}),
        ("from . import b", "lib.a", {"lib.a", "lib.a.b"}),
        ("from .b import c", "lib.a", {"lib.a.b", "lib.a.b.c"}),
        ("from ..b import c", "lib.a", {"lib.b", "lib.b.c"}),
        ("import library\nfrom numpy import lib", "", set()),
    ],
)
def test_imports_are_found_in_every_form(code, package, names):
    assert sources.lib_imports(ast.parse(code), package) == names
