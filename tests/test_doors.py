"""Container, Binder, Colab: the files are well formed, and say what the kit needs."""

import json
import os
import re
import subprocess
from pathlib import Path

from lib.kit import environment

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def admitted(version):
    return environment.OLDEST <= tuple(map(int, version.split("."))) <= environment.NEWEST


def test_the_container_sets_up_the_kit():
    settings = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    image, version = re.fullmatch(r"(python):(\d+\.\d+)-bookworm", settings["image"]).groups()
    assert image == "python" and admitted(version)
    command, target = settings["postCreateCommand"].split()
    assert command == "make" and f"\n{target}:" in (ROOT / "Makefile").read_text()
    interpreter = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == "${containerWorkspaceFolder}/.venv/bin/python"


def test_binder_gets_the_lock():
    folder = ROOT / ".binder"
    assert admitted((folder / "runtime.txt").read_text().strip().removeprefix("python-"))
    assert os.access(folder / "postBuild", os.X_OK)
    assert " -r requirements.lock\n" in (folder / "postBuild").read_text()
    assert {path.name for path in folder.iterdir()} == {"postBuild", "runtime.txt"}  # see its text
    assert subprocess.run(["bash", "-n", folder / "postBuild"]).returncode == 0


def test_colab_gets_all_pins_but_torch():
    page = (ROOT / "docs/doors.md").read_text()
    (filtered,) = re.findall(
        r"^!(grep .*) \| python -m pip install .*--no-deps", page, re.MULTILINE
    )
    done = subprocess.run(filtered, shell=True, cwd=ROOT, capture_output=True, text=True)
    left = environment.pins(LOCK).items() - environment.pins(done.stdout).items()
    assert {name for name, _ in left} == {"torch"}
    others = re.findall(r"^!python -m pip (?!.*--no-deps).*", page, re.MULTILINE)
    assert not others  # any other installation could replace torch
