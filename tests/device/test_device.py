"""A part of `make test-device`, and `make gpu` at tiny sizes on whatever there is.

Each runs in a process of its own, because the pretend device renames a backend of torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pretend
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = pretend.compiler() is None


def python(*arguments, **settings):
    outside = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True)


@pytest.mark.skipif(WITHOUT, reason="no C++ compiler, so no pretend device")
def test_a_pretend_device_refuses_mixes_and_every_public_call_has_a_case():
    done = python("-m", "pytest", "-q", "-k", "not on_the_cpu", "tests/device/checks.py")
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_step_for_a_card_runs_at_tiny_sizes(tmp_path):
    """Its device tests are those of svd."""
    device = "cpu" if WITHOUT else "pretend"
    out = tmp_path / "gpu.json"
    done = python("tests/device/gpu.py", "--device", device, "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert list(found["steps"]) == list(gpu.STEPS) and not found["failed"]
    assert found["steps"]["ising"]["equal"] and found["steps"]["device tests"]["calls"] > 20
    assert found["steps"]["determinism"]["changed"] == []


def test_without_a_card_one_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "needs a card" in said and not list(tmp_path.iterdir())


def test_a_step_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch):
    def broken(device, sizes):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu, "STEPS", {"one": broken, "two": lambda device, sizes: {"rate": 1.0}})
    gpu.all_steps(torch.device("cpu"), gpu.TINY, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == ["one: RuntimeError: no kernel"]
    assert found["steps"] == {"two": {"rate": 1.0}}


def test_a_step_past_the_limit_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", {"late": lambda device, sizes: {}})
    monkeypatch.setattr(gpu, "LIMIT", -1.0)
    found = gpu.all_steps(torch.device("cpu"), gpu.TINY, tmp_path / "gpu.json")
    assert "left out" in found["failed"][0] and not found["steps"]
