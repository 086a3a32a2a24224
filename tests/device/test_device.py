"""A part of the checks on the pretend device, in a process of its own: it renames a backend."""

import os
import subprocess
import sys
from pathlib import Path

import pretend
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(pretend.compiler() is None, reason="no C++ compiler: no pretend device")
def test_slices_and_latents_on_a_pretend_device_are_those_of_the_cpu():
    settings = {"TEST_DEVICE": "pretend", "TEST_ROOMS": "slices svd"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/device/checks.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-3000:]
