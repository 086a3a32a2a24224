"""Tiles on a Dask cluster of two workers equal those of this machine, and none is lost."""

import os
import signal
import sys
import types

import numpy as np
import pytest
import torch

from lib.kit import cache, pools, run, session

CODE = """
import os, time, torch

def piece(item):
    with open(log, "a") as calls:
        calls.write(f"{item} {os.getpid()}\\n")
    if item in broken:
        raise ArithmeticError(f"item {item}")
    time.sleep(pause)
    own = torch.randn(64, 64, generator=torch.Generator().manual_seed(item), dtype=torch.float64)
    return {"value": scale * torch.linalg.qr(own).Q @ own, "threads": torch.get_num_threads()}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread, with a root of their own."""
    distributed = pytest.importorskip(
        "distributed", reason="the extra cluster is not installed: pip install -e '.[cluster]'"
    )
    root = tmp_path_factory.mktemp("workers")
    path = os.pathsep.join([str(session.CHECKOUT), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"KIT_ROOT": str(root), "PYTHONPATH": path}.items():
            patch.setenv(name, value)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster:
            yield types.SimpleNamespace(address=cluster.scheduler_address, root=root)


@pytest.fixture
def here(cluster, root, monkeypatch):
    """A run on the cluster whose folder the workers do not see."""
    monkeypatch.setenv("KIT_DASK", cluster.address)
    monkeypatch.setattr(session, "_current", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run.start("quick", notebook="01_ising", seed=3)
    yield root
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def notebook(tmp_path):
    """A function as a notebook defines it, which no other process can import."""

    def define(**names):
        settings = {"log": str(tmp_path / "calls"), "pause": 0.0, "scale": 3.0, "broken": ()}
        cell = {"__name__": "__main__", **settings, **names}
        exec(compile(CODE, "a cell", "exec"), cell)
        return cell["piece"]

    return define


def calls(tmp_path):
    """(item, process) of every call so far."""
    log = tmp_path / "calls"
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]


def entries(root):
    return {path.name for path in (root / "cache").rglob("*.npz")}


def values(found):
    return np.stack([piece["value"].numpy() for piece in found])


def test_results_keys_and_seeds_are_those_of_this_machine(
    here, cluster, notebook, tmp_path, monkeypatch
):
    counted = []

    def bar(items, label="", total=None):
        counted.append(total)
        return items

    monkeypatch.setattr(run, "bar", bar)
    found = run.tiles(range(6), notebook(), parallel=True)
    assert counted == [6, None]
    processes = {process for _, process in calls(tmp_path)}
    assert os.getpid() not in processes and len(calls(tmp_path)) == 6
    assert {piece["threads"] for piece in found} == {1}
    kept = entries(here)
    monkeypatch.delenv("KIT_DASK")
    monkeypatch.setenv("KIT_ROOT", str(tmp_path / "alone"))
    alone = run.tiles(range(6), notebook())
    assert np.array_equal(values(found), values(alone))
    assert kept == entries(tmp_path / "alone") and len(kept) == 6
    assert not list((here / "cache").glob(".*"))


def test_a_shared_folder_is_written_by_the_workers(here, cluster, notebook, monkeypatch):
    monkeypatch.setenv("KIT_ROOT", str(cluster.root))
    before = entries(cluster.root)
    monkeypatch.setattr(session, "write_atomically", refuse_entries(session.write_atomically))
    run.tiles(range(3), notebook(scale=2.0), parallel=True)
    assert len(entries(cluster.root) - before) == 3


def refuse_entries(write):
    def checked(path, data):
        assert path.suffix != ".npz", "the caller stored what lies in the shared folder already"
        write(path, data)

    return checked


def test_what_is_kept_is_not_sent_again(here, notebook, tmp_path, monkeypatch):
    run.tiles(range(3), notebook(scale=5.0), parallel=True)
    monkeypatch.setenv("KIT_DASK", "tcp://127.0.0.1:1")  # nobody is asked
    run.tiles(range(3), notebook(scale=5.0), parallel=True)
    assert len(calls(tmp_path)) == 3


def test_an_interrupt_cancels_what_waits_and_keeps_what_is_there(
    here, notebook, tmp_path, monkeypatch
):
    def bar(items, label="", total=None):
        for count, item in enumerate(items):
            if count == 2:
                raise KeyboardInterrupt
            yield item

    piece = notebook(pause=0.3, scale=7.0)
    with monkeypatch.context() as patch:
        patch.setattr(run, "bar", bar)
        with pytest.raises(KeyboardInterrupt, match="3 of 20 items"):
            run.tiles(range(20), piece, parallel=True)
    assert len(entries(here)) == 3
    torch.set_num_threads(1)
    begun = {item for item, _ in calls(tmp_path)}
    run.tiles(sorted(begun), piece, parallel=True)
    assert {item for item, _ in calls(tmp_path)} == begun and len(begun) < 20


def test_a_killed_worker_loses_nothing(here, notebook, tmp_path, monkeypatch):
    killed = []

    def bar(items, label="", total=None):
        for item in items:
            if total and not killed:
                killed.append(calls(tmp_path)[-1][1])
                os.kill(killed[0], signal.SIGKILL)
            yield item

    monkeypatch.setattr(run, "bar", bar)
    found = run.tiles(range(12), notebook(pause=0.2, scale=1.0), parallel=True)
    alone = [notebook(scale=1.0)(item) for item in range(12)]
    assert killed and np.array_equal(values(found), values(alone))
    by_others = {process for _, process in calls(tmp_path)} - {os.getpid(), *killed}
    assert by_others and len(entries(here)) == 12


def test_an_item_that_fails_is_raised_after_the_others(here, notebook, tmp_path):
    with pytest.raises(ArithmeticError, match="item 1"):
        run.tiles(range(4), notebook(broken=(1,)), parallel=True)
    assert len(entries(here)) == 3


def test_a_worker_with_other_versions_is_refused(here, notebook):
    (here / "requirements.lock").write_text("torch==0\n")
    cache._versions.cache_clear()
    with pytest.raises(ValueError, match="another key.*same checkout"):
        run.tiles(range(2), notebook(scale=9.0), parallel=True)
    cache._versions.cache_clear()


def test_a_scheduler_that_does_not_answer_is_named(here, notebook, monkeypatch):
    import dask

    monkeypatch.setenv("KIT_DASK", "tcp://127.0.0.1:1")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ValueError, match="no Dask scheduler answers at KIT_DASK='tcp://127"),
    ):
        run.tiles(range(2), notebook(scale=11.0), parallel=True)


def test_without_the_extra_it_says_what_to_install(root, notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="cluster"):
        list(pools.on_cluster("tcp://127.0.0.1:1", [1], notebook(), lambda: None))
