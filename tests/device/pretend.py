"""The pretend accelerator of `pretend.cpp`: built where a compiler is at hand, and switched on.

Switching on renames a backend of torch for the whole process, so it belongs into one of its own.
The object is kept in build/device, under a name that follows from its source and torch's version.
"""

import hashlib
import os
import shutil
import subprocess
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("pretend.cpp")
BUILD = Path(__file__).resolve().parents[2] / "build" / "device"


def compiler() -> str | None:
    """The C++ compiler of this machine, None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "c++"))), None)


def build() -> Path:
    """Compile the device unless the same was compiled before; the path of the object."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    built = BUILD / f"pretend-{key}.so"
    if not built.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = BUILD / f".{built.name}.{os.getpid()}.tmp"
        here = Path(torch.__file__).parent
        command = [compiler(), "-shared", "-fPIC", "-std=c++20", "-O0", str(SOURCE)]
        command += [f"-I{here / 'include'}", f"-I{here / 'include/torch/csrc/api/include'}"]
        command += [f"-L{here / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(partial)]
        subprocess.run(command, check=True)
        os.replace(partial, built)
    return built


def switch_on() -> torch.device:
    """Load the device under its name; once per process."""
    torch.utils.rename_privateuse1_backend("pretend")
    torch.ops.load_library(build())
    module = types.ModuleType("torch.pretend")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None  # it draws nothing
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module("pretend", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device("pretend", 0)
