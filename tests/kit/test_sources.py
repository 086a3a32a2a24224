"""Digests follow the code that is used, and nothing else."""

import ast

import pytest

from lib.kit import sources


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
