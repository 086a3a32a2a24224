"""The cache returns what the function returned, notices every change, and trusts no file."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lib.kit import cache, codec, plots, run, session

calls = []


def count(x, b=2, *, c=0):
    calls.append(x)
    return x + b + c


def give(value):
    return value


@dataclass(frozen=True)
class Pair:
    first: torch.Tensor
    second: dict


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.config = {"width": width}
        self.layer = torch.nn.Linear(width, 2, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _own_cache(root, monkeypatch):
    monkeypatch.setattr(codec, "TRUSTED", (*codec.TRUSTED, __name__.split(".")[0]))
    monkeypatch.setattr(session, "_current", None)
    calls.clear()


def entries():
    return list(session.cache_folder().rglob("*.npz"))


def test_a_call_is_computed_once():
    assert cache.cached(count, 3) == cache.cached(count, 3) == 5
    assert calls == [3]


@pytest.mark.parametrize("call", [lambda k: k(count, 3, 4), lambda k: k(count, b=4, x=3, c=0)])
def test_equal_calls_share_a_key_however_they_are_written(call):
    assert call(cache.key) == cache.key(functools.partial(count, b=4), 3)


def test_different_arguments_functions_and_seeds_have_different_keys(tmp_path):
    keys = {cache.key(count, 3), cache.key(count, 3.0), cache.key(count, 4), cache.key(give, 3)}
    keys |= {cache.key(give, np.arange(4)), cache.key(give, np.arange(4).reshape(2, 2))}
    keys |= {cache.key(give, np.arange(4, dtype=np.int32)), cache.key(give, torch.arange(4))}
    keys |= {cache.key(give, (1, 2)), cache.key(give, [1, 2])}
    session.announce(session.Session("01_ising", "quick", 7, {}, tmp_path))
    keys |= {cache.key(count, 3)}
    assert len(keys) == 11


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.1,
        float("inf"),
        "text é",
        b"\x00\xff",
        (1, [2.0, "a"], {"k": None}),
        np.float64(0.1),
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.array("text"),
        torch.arange(3, dtype=torch.float64),
        torch.tensor([1.5, -2], dtype=torch.bfloat16),
        torch.tensor(2.0, requires_grad=True),
        torch.float64,
        torch.logit,
    ],
    ids=str,
)
def test_values_come_back_as_they_were(value):
    first, second = cache.cached(give, value), cache.cached(give, value)
    for found in (first, second):
        assert type(found) is type(value)
        assert getattr(found, "dtype", None) == getattr(value, "dtype", None)
        assert bool((found == value).all() if hasattr(value, "shape") else found == value)
    if isinstance(value, torch.Tensor):
        assert second.requires_grad == value.requires_grad
    assert len(entries()) == 1


def test_dataclasses_and_networks_come_back_with_their_precision():
    pair = Pair(torch.eye(2), {"net": Net(3).eval()})
    cache.cached(give, pair)
    found = cache.cached(give, pair)
    old, new = pair.second["net"], found.second["net"]
    assert isinstance(found, Pair) and torch.equal(found.first, pair.first)
    assert not new.training and new.layer.weight.dtype == torch.float64
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(old.layer(x), new.layer(x))


def test_reading_a_network_leaves_the_global_generator_alone():
    cache.cached(give, Net(3))
    torch.manual_seed(1)
    expected = torch.rand(1)
    net = Net(3)
    torch.manual_seed(1)
    cache.cached(give, net)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other entry"])
def test_a_corrupt_entry_is_reported_deleted_and_recomputed(damage):
    big = np.arange(1000.0)
    cache.cached(give, big)
    (entry,) = entries()
    data = bytearray(entry.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    if damage == "cut":
        del data[len(data) // 2 :]
    if damage == "empty":
        data.clear()
    if damage == "other entry":
        cache.cached(give, -big)
        data = next(path for path in entries() if path != entry).read_bytes()
    entry.write_bytes(data)
    with pytest.warns(UserWarning, match="corrupt"):
        assert np.array_equal(cache.cached(give, big), big)
    assert np.array_equal(cache.cached(give, big), big)


def test_an_entry_with_a_pickle_inside_is_not_loaded():
    cache.cached(give, 1)
    (entry,) = entries()
    np.savez(entry, tree=np.array([{"evil": 1}], dtype=object), sha256=np.array("0"))
    with pytest.warns(UserWarning, match="corrupt"):
        assert cache.cached(give, 1) == 1


def test_names_outside_the_trusted_packages_are_not_imported():
    with pytest.raises(ValueError, match="refusing to import"):
        codec.decode({"function": "os:system"}, [])


def test_nothing_is_left_behind_when_writing_fails(monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.cached(count, 3)
    assert not [path for path in session.cache_folder().rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([None]), {1, 2}], ids=repr)
def test_what_has_no_stored_form_is_refused(value):
    with pytest.raises(ValueError, match="cannot store"):
        cache.cached(give, value)


def notebook_function(text, name="f", **names):
    """Function as a notebook cell defines it."""
    scope = {"__name__": "__main__", **names}
    exec(compile(text, "<cell>", "exec"), scope)
    return scope[name]


def test_notebook_functions_are_hashed_by_code_defaults_closure_and_globals():
    text = "def f(x, k=1):\n    return helper(x) + k\n\ndef helper(x):\n    return scale * x"
    f = notebook_function(text, scale=2)
    same = notebook_function("\n\n# moved\n" + text, scale=2)
    for _ in range(100):  # bytecode specialises itself while it runs
        f(1)
    assert cache.key(f, 1) == cache.key(same, 1)
    others = [
        notebook_function(text, scale=3),
        notebook_function(text.replace("k=1", "k=2"), scale=2),
        notebook_function(text.replace("scale * x", "scale - x"), scale=2),
    ]
    assert len({cache.key(g, 1) for g in (f, *others)}) == 4


def test_a_recursive_notebook_function_has_a_key():
    f = notebook_function("def f(n):\n    return n * f(n - 1) if n else 1")
    assert cache.cached(f, 5) == 120


def test_a_notebook_function_that_cannot_be_hashed_says_where_to_move_it():
    f = notebook_function("def f(x):\n    return thing, x", thing=object())
    with pytest.raises(ValueError, match="module of lib"):
        cache.cached(f, 1)


def test_a_notebook_function_may_come_back_inside_the_value():
    f = notebook_function("def f(x):\n    return x + 1")
    cache.cached(give, {"natural": f})
    assert cache.cached(give, {"natural": f})["natural"] is f


def test_a_notebook_function_may_use_the_record_of_the_run(monkeypatch):
    kit = run.start("smoke", notebook="01_ising", samples=(1, 2, 3))
    f = notebook_function("def f(x):\n    return kit.samples + x", kit=kit)
    assert cache.cached(f, 1) == 2


def test_weights_enter_the_key_by_content(root):
    folder = root / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"one")
    before, other = cache.key(give, "tiny"), cache.key(give, "text")
    (folder / "model.safetensors").write_bytes(b"two!")
    assert cache.key(give, "tiny") != before
    assert cache.key(give, "text") == other
    with pytest.raises(ValueError, match="no weights"):
        cache.weights("missing")


def test_an_object_with_a_weight_hash_is_known_by_it():
    class Loaded:
        def __init__(self, weight_hash):
            self.weight_hash, self.handle = weight_hash, object()

    assert cache.key(give, Loaded("a")) == cache.key(give, Loaded("a"))
    assert cache.key(give, Loaded("a")) != cache.key(give, Loaded("b"))


def keys_in_new_process(library, *calls):
    modules = ", ".join(path.stem for path in library.glob("[a-z]*.py"))
    keys = ", ".join(f"cache.key({call})" for call in calls)
    script = f"from lib.kit import cache, run; from lib import {modules}; print({keys}, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=library.parent,
        env={**os.environ, "PYTHONPATH": str(library.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


NOTEBOOK = "eval('lambda x: used.f(x)', {'used': used, '__name__': '__main__'}), 3"
MODULE = "cache.key, [used], 3"


def test_editing_a_function_in_lib_changes_the_keys_of_what_uses_it(copied_lib):
    calls = ("used.f, 3", "cache.key, used.f", NOTEBOOK, MODULE)
    before = keys_in_new_process(copied_lib, *calls)
    (copied_lib / "unrelated.py").write_text("def h(x):\n    return -x\n")
    (copied_lib / "used.py").write_text((copied_lib / "used.py").read_text() + "\n\ny = 1\n")
    aside = keys_in_new_process(copied_lib, *calls)
    assert aside[:-1] == before[:-1]
    assert aside[-1] != before[-1]  # a module as a value counts as a whole
    (copied_lib / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    after = keys_in_new_process(copied_lib, *calls)
    assert all(a != b for a, b in zip(after, aside, strict=True))


def test_moving_a_function_keeps_the_keys_of_what_uses_it(copied_lib):
    before = keys_in_new_process(copied_lib, "used.f, 3", NOTEBOOK)
    (copied_lib / "deeper.py").rename(copied_lib / "below.py")
    (copied_lib / "moved.py").write_text(
        "from lib import below as deeper\n\n\ndef f(x):\n    return deeper.g(x)\n"
    )
    (copied_lib / "used.py").write_text("")
    moved = NOTEBOOK.replace("'used': used", "'used': moved")
    assert keys_in_new_process(copied_lib, "moved.f, 3", moved) == before


def test_an_import_inside_a_notebook_function_is_followed(copied_lib):
    text = "def k(x):\\n    from lib.used import f\\n    return f(x)"
    call = f"(scope := {{'__name__': '__main__'}}, exec('{text}', scope), scope['k'])[2], 3"
    before = keys_in_new_process(copied_lib, call)
    (copied_lib / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    assert keys_in_new_process(copied_lib, call) != before


def test_an_entry_of_a_class_that_has_moved_is_computed_anew(monkeypatch):
    assert cache.cached(count, 3) == 5
    decode, answers = codec.decode, iter([AttributeError("no such class")])

    def once(*arguments):
        for answer in answers:
            raise answer
        return decode(*arguments)

    monkeypatch.setattr(codec, "decode", once)
    assert cache.cached(count, 3) == 5 and calls == [3, 3]


def test_source_edited_after_its_first_use_is_refused(monkeypatch):
    monkeypatch.setattr(cache, "_first_seen", {("lib.kit.plots", "WIDTHS"): "older"})
    with pytest.raises(ValueError, match=r"lib\.kit\.plots\.WIDTHS was edited.*restart the kernel"):
        cache.key(plots.figure)


def test_the_stored_tree_is_plain_json():
    cache.cached(give, (1, "a", np.eye(2)))
    (entry,) = entries()
    with np.load(entry, allow_pickle=False) as stored:
        assert json.loads(stored["tree"].tobytes()) == {"tuple": [1, "a", {"array": 0}]}
