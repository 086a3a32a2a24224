"""A run refuses bad settings, is the same everywhere, and resumes its work items."""

import os
import random
import sys

import numpy as np
import pytest
import torch

from lib.kit import run, session

done = []


@pytest.fixture(autouse=True)
def _own_root(root, monkeypatch):
    monkeypatch.setattr(session, "_current", None)
    yield
    torch.use_deterministic_algorithms(False)


def start(profile, **sizes):
    return run.start(profile, notebook="01_ising", seed=3, **(sizes or {"samples": (1, 20, 300)}))


@pytest.mark.parametrize(
    ("profile", "samples"), [("smoke", 1), ("quick", 20), ("full", 300), ("paper", 300)]
)
def test_each_profile_takes_its_own_size_and_paper_that_of_full(profile, samples):
    assert start(profile).samples == samples


def test_a_fourth_size_is_for_the_paper_profile():
    assert start("paper", samples=(1, 2, 3, 4)).samples == 4


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(ValueError, match="quikc.*quick"):
        start("quikc")


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 3, 4, 5), 7, [1, 2, 3]])
def test_malformed_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"size samples is .*expected \(smoke, quick, full"):
        start("quick", samples=sizes)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_seed_is_a_natural_number(seed):
    with pytest.raises(ValueError, match="seed is"):
        run.start("quick", notebook="01_ising", seed=seed)


def test_a_notebook_has_a_numbered_name():
    with pytest.raises(ValueError, match="notebook is"):
        run.start("quick", notebook="ising")


def test_the_record_cannot_be_changed_and_names_near_sizes():
    kit = start("quick")
    with pytest.raises(AttributeError):
        kit.seed = 1
    with pytest.raises(AttributeError, match="samples"):
        _ = kit.sample


def test_the_environment_overrides_the_profile(monkeypatch):
    monkeypatch.setenv("KIT_PROFILE", "smoke")
    assert start("full").profile == "smoke"


def test_global_generators_are_seeded_and_algorithms_deterministic():
    def draw():
        start("quick")
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    assert draw() == draw()
    assert torch.are_deterministic_algorithms_enabled()


def test_the_announcement_is_one_line_without_machine_or_time(capsys):
    start("quick")
    said = "01_ising · profile quick · seed 3 · samples 20"
    assert capsys.readouterr().out == f"{said} · figures go to build/interactive/01_ising/\n"


@pytest.mark.parametrize("setting", ["KIT_OUTPUT", "KIT_PROFILE"])
def test_a_headless_run_does_not_say_where_it_writes(monkeypatch, tmp_path, capsys, setting):
    monkeypatch.setenv(setting, {"KIT_OUTPUT": str(tmp_path), "KIT_PROFILE": "quick"}[setting])
    start("quick")
    assert capsys.readouterr().out == "01_ising · profile quick · seed 3 · samples 20\n"


def test_outputs_go_below_build_unless_the_pipeline_names_a_folder(root, monkeypatch, tmp_path):
    start("quick")
    assert session.current().output == root / "build" / "interactive" / "01_ising"
    monkeypatch.setenv("KIT_OUTPUT", str(tmp_path / "staging"))
    start("quick")
    assert session.current().output == tmp_path / "staging"


def square(item):
    done.append(item)
    if item == "stop":
        raise KeyboardInterrupt
    return item * item


def test_tiles_equal_a_loop_and_finished_ones_are_not_repeated():
    done.clear()
    assert run.tiles([1, 2, 3], square) == [1, 4, 9]
    assert run.tiles(range(1, 5), square) == [1, 4, 9, 16]
    assert done == [1, 2, 3, 4]


def test_an_interrupt_keeps_what_is_finished_and_says_how_much():
    done.clear()
    with pytest.raises(KeyboardInterrupt, match="2 of 4 items"):
        run.tiles([11, 12, "stop", 13], square)
    run.tiles([11, 12, 13], square)
    assert done == [11, 12, "stop", 13]


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def who(item):
    if item == "odd one" and os.getpid() != who.parent:
        raise RuntimeError("in a process of its own")
    print("not seen")
    return os.getpid(), torch.get_num_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is not shared among processes")
def test_parallel_tiles_come_from_several_processes_of_one_thread(two_threads, capsys):
    who.parent = os.getpid()
    found = run.tiles(["a", "b", "c", "d"], who, parallel=True)
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2
    assert {threads for _, threads in found} == {1}
    assert found[0] == found[2] != found[1]  # dealt out in turn
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_what_fails_in_a_process_is_computed_by_the_caller(two_threads):
    who.parent = os.getpid()
    (pid, _), (other, _), _ = run.tiles(["first", "odd one", "third"], who, parallel=True)
    assert other == os.getpid()
    assert pid != os.getpid() or torch.cuda.is_available()
    with pytest.raises(ZeroDivisionError):
        run.tiles([1, 0, 2], inverse, parallel=True)


def inverse(item):
    return 1 / item


def test_a_headless_run_prints_no_bar(monkeypatch, capsys):
    monkeypatch.setenv("KIT_OUTPUT", "anywhere")
    assert list(run.bar([1, 2])) == [1, 2]
    assert capsys.readouterr() == ("", "")
