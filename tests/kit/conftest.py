"""Small roots, so that the pipeline can be tried without the real one."""

import shutil

import pytest

from lib.kit import session


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Give the kit an empty root with a cache of its own."""
    folder = tmp_path / "a root"
    folder.mkdir()
    monkeypatch.setenv("KIT_ROOT", str(folder))
    monkeypatch.delenv("KIT_CACHE", raising=False)
    return folder


@pytest.fixture
def session_in(tmp_path, monkeypatch):
    """Announce a session of the evidence of 01_ising that writes below tmp_path."""
    monkeypatch.setattr(session, "_current", None)
    output = tmp_path / "output"
    session.announce(session.Session("evidence/01_ising", "quick", 0, {"samples": 4}, output))
    return output


@pytest.fixture
def copied_lib(root):
    """Put a copy of lib/kit with two modules of its own under the root."""
    kit = session.CHECKOUT / "lib" / "kit"
    shutil.copytree(kit, root / "lib" / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "lib" / "__init__.py").touch()
    (root / "lib" / "used.py").write_text(
        "from lib import deeper\n\ndef f(x):\n    return deeper.g(x)\n"
    )
    (root / "lib" / "deeper.py").write_text("def g(x):\n    return 2 * x\n")
    (root / "lib" / "unrelated.py").write_text("def h(x):\n    return x\n")
    return root / "lib"
