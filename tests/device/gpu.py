"""What one card does, in at most eight minutes: `make gpu`, which writes figures/gpu.json.

Every public call on the card against the CPU, and against itself; slices, metrics, geodesics and
Ising beside their rivals; a text model at the size of Stable Diffusion with random weights; steps
of training of the embedded models.

No card was at hand when this was written. Every step has run at tiny sizes, on the CPU and on the
pretend accelerator (test_gpu.py), so what is not known is speed, memory, CUDA's own rounding, and
whether its kernels repeat.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pretend
import torch
from table import CASES, ROOMS, On, differences, run

from benchmarks import small
from benchmarks.geometry import Potential, pairs
from lib import slices
from lib.diffusion import models, rehearsal, sampling
from lib.geometry.geodesics import geodesic
from lib.geometry.grids import from_grid
from lib.geometry.metric import fisher_metric
from lib.kit.session import write_atomically
from lib.physics import ising
from lib.training import ddpm, scorers, sd

OUT = Path(__file__).resolve().parents[2] / "figures" / "gpu.json"
LIMIT = 480.0  # seconds: a step that would begin later is left out
STABLE = {"prompt": "a face", "guidance": 7.5}


class Sizes(NamedTuple):
    """How much of each step: what a card fills, or as little as shows that it runs."""

    rooms: tuple[str, ...] = ROOMS
    points: int = 1024  # of a slice, of which one by one:
    alone: int = 32
    passes: int = 20
    grid: int = 128
    width: int = 512
    paths: int = 1000
    chains: int = 4096
    lattice: int = 64
    images: int = 8
    tiny: bool = False  # the text model
    updates: int = 100


TINY = Sizes(("svd",), 4, 2, 2, 6, 8, 2, 2, 8, 1, True, 2)


def rate(call: Callable[[], object], count: int, device: torch.device) -> float:
    """`count` over the seconds of a call, after one that warms up."""
    call()
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return count / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_tests(device: torch.device, sizes: Sizes) -> dict:
    """Public calls whose answer is not the CPU's."""
    wrong = {name: found for name in _cases(sizes) if (found := _tried(differences, name, device))}
    return {"calls": len(_cases(sizes)), "wrong": wrong}


def determinism(device: torch.device, sizes: Sizes) -> dict:
    """Public calls that give other bits when they are repeated."""
    changed = [name for name in _cases(sizes) if _tried(_changes, name, device)]
    return {"calls": len(_cases(sizes)), "changed": changed}


def _cases(sizes: Sizes) -> list[str]:
    return [name for name in CASES if name.split(".")[0] in sizes.rooms]


def _tried(check: Callable, name: str, device: torch.device) -> list[str]:
    try:
        return check(name, device)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]


def _changes(name: str, device: torch.device) -> list[str]:
    first, second = ([_bits(x) for x in run(name, device)] for _ in range(2))
    return [] if first == second else [name]


def _bits(value: object) -> object:
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value).tobytes()


def slice_rows(device: torch.device, sizes: Sizes) -> dict:
    """Images of a slice of the embedded pixel model per second, together and one by one."""
    generator = On(device)(models.load("avatars-ddpm", device="cpu"))
    plane = slices.Slice(generator.noise(3, 0))
    t = torch.rand(sizes.points, 2, generator=torch.Generator().manual_seed(0)).double()

    def render(n: int, batch: int) -> torch.Tensor:
        own = {"steps": sizes.passes, "progress": False}
        return slices.render(generator, plane, t[:n], batch=batch, **own)

    together = rate(lambda: render(sizes.points, slices.plane.PIECE), sizes.points, device)
    alone = rate(lambda: render(sizes.alone, 1), sizes.alone, device)
    both = rate(lambda: slices.jacobian(generator, plane, t[: sizes.alone], steps=2), 1, device)
    return {
        "passes": sizes.passes,
        "images_per_s": together,
        "one_by_one_per_s": alone,
        "times": together / alone,
        "jacobians_of_two_passes_per_s": both * sizes.alone,
    }


def geometry_rows(device: torch.device, sizes: Sizes) -> dict:
    """Points of a metric per second, on the device and the CPU, and geodesics under its table."""
    axis = torch.linspace(0, 1, sizes.grid, dtype=torch.float64)
    t, shape = torch.cartesian_prod(axis, axis), (sizes.grid, sizes.grid, 2, 2)
    network = Potential(width=sizes.width).double()
    here = On(device)
    potential, points = here(network), here(t)
    table = from_grid(here([axis, axis]), fisher_metric(potential, points).reshape(shape))
    start, end = here(pairs(sizes.paths))
    few = t[:: max(1, len(t) // 1024)]
    return {
        "metric_points_per_s": rate(lambda: fisher_metric(potential, points), len(t), device),
        "metric_points_per_s_on_the_cpu": rate(
            lambda: fisher_metric(network, few), len(few), torch.device("cpu")
        ),
        "geodesics_per_s": rate(lambda: geodesic(table, start, end), sizes.paths, device),
    }


def ising_rows(device: torch.device, sizes: Sizes) -> dict:
    """Millions of spin updates per second by clusters: tensors on the device, loops on the CPU."""
    beta, sweeps = np.full(sizes.chains, ising.CRITICAL_BETA), 20
    updates = sizes.chains * sizes.lattice**2 * sweeps / 1e6

    def sample(where: str) -> np.ndarray:
        return ising.sample(beta, 0.0, sizes.lattice, sweeps=sweeps, device=where)

    where = str(device) if device.type == "cuda" else "torch"
    return {
        "million_updates_per_s": rate(lambda: sample(where), updates, device),
        "million_updates_per_s_compiled_on_the_cpu": rate(lambda: sample("cpu"), updates, device),
        "equal": bool((sample(where) == sample("cpu")).all()),
    }


def text_rows(device: torch.device, sizes: Sizes) -> dict:
    """Stable Diffusion 1.5 with random weights under guidance: images per second, peak memory."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = _stable(device, dtype, sizes.tiny)
        noise = generator.noise(sizes.images, 0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        own = {"steps": sizes.passes, "progress": False, **STABLE}
        draw = partial(sampling.ddim, generator, noise, **own)
        speed = rate(draw, len(noise), device)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        found[str(dtype).removeprefix("torch.")] = {"images_per_s": speed, "peak_gib": peak}
        del generator, draw
    return {"images": sizes.images, "passes": sizes.passes, **found}


def _stable(device: torch.device, dtype: torch.dtype, tiny: bool) -> models.Generator:
    """A text model of the published size; its words are those of the tiny folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = small.write("sd-1.5", Path(folder) / "sd")
        generator = models.load(path, device="cpu")
    parts = rehearsal.networks("sd-1.5", small.changes("sd-1.5") if tiny else {})
    torch.manual_seed(0)
    for name, part in (("unet", "unet"), ("autoencoder", "vae"), ("text_encoder", "text_encoder")):
        network = parts[part]().eval().requires_grad_(False)
        setattr(generator, name, torch.nn.Module.to(network, device, dtype))
    size = generator.unet.config.sample_size
    generator.latent_shape = (4, size, size)
    return generator


def training_rows(device: torch.device, sizes: Sizes) -> dict:
    """Steps of training per second, forward, backward and AdamW, on random batches."""
    tasks = {
        "avatars-ddpm": (ddpm.ddpm_task(), lambda n: (_images(n, 32),)),
        "avatars-vae": (sd.autoencoder_task(), lambda n: (_images(n, 64),)),
        "avatars-sd": (sd.text_to_image_task(), _latents),
        "judge-a": (scorers.judge_task("a"), lambda n: (_images(n, 32), _labels(n))),
        "judge-b": (scorers.judge_task("b"), lambda n: (_images(n, 64), _labels(n))),
        "clip": (scorers.clip_task(), _captioned),
    }
    return {name: _steps_per_s(*task, device, sizes) for name, task in tasks.items()}


def _steps_per_s(task, batch: Callable, device: torch.device, sizes: Sizes) -> float:
    network, n = task.build().to(device).train(), 2 if sizes.tiny else task.batch
    optimiser = torch.optim.AdamW(network.parameters(), lr=task.rate)
    drawn = tuple(part.to(device) for part in batch(n))

    def update() -> None:
        for step in range(sizes.updates):
            rng = torch.Generator().manual_seed(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = task.loss(network, drawn, rng)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return rate(update, sizes.updates, device)


def _images(n: int, size: int) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _labels(n: int) -> torch.Tensor:
    return torch.zeros(n, len(scorers.ATTRIBUTES), dtype=torch.long)


def _latents(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 16, 16, generator=rng), torch.randn(n, 24, 128, generator=rng)


def _captioned(n: int) -> tuple[torch.Tensor, ...]:
    from lib.faces import captions

    said = [text for name in scorers.ATTRIBUTES for text in scorers.options(name, "a face")]
    tokens = captions.tokenizer()(["a face"] * n + said, padding="max_length", return_tensors="pt")
    return _images(n, 64), tokens.input_ids, tokens.attention_mask, _labels(n)


STEPS = {
    "device tests": device_tests,
    "slices": slice_rows,
    "geometry": geometry_rows,
    "ising": ising_rows,
    "text model": text_rows,
    "training": training_rows,
    "determinism": determinism,
}


def all_steps(device: torch.device, sizes: Sizes, out: Path) -> dict:
    """Run the steps one after the other, and write what is known after each."""
    begin = time.perf_counter()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    found = {"device": card or device.type, "torch": torch.__version__, "steps": {}, "failed": []}
    for name, step in STEPS.items():
        try:
            if time.perf_counter() - begin > LIMIT:
                raise TimeoutError(f"left out, {LIMIT:.0f} s are over")
            found["steps"][name] = step(device, sizes)
        except Exception as error:  # the other steps have something to say all the same
            found["failed"].append(f"{name}: {type(error).__name__}: {error}")
        found["seconds"] = round(time.perf_counter() - begin, 1)
        said = found["steps"].get(name, "failed")
        print(f"{found['seconds']:6.1f} s  {name}: {said}", flush=True)
        write_atomically(out, json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 without the device, and where a step failed or a call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu", "pretend"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="only show that every step runs")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(
            f"make gpu needs a card that torch sees: torch {torch.__version__} sees none "
            "(`make test-device` runs every call on a pretend one)",
            file=sys.stderr,
        )
        return 1
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = pretend.switch_on() if chosen.device == "pretend" else torch.device(chosen.device)
    sizes = TINY if chosen.tiny else Sizes()
    for room in ROOMS:
        importlib.import_module(f"cases_{room}")
    found = all_steps(device, sizes, chosen.out)
    print(*found["failed"], f"written to {chosen.out}", sep="\n")
    return int(bool(found["failed"] or found["steps"]["device tests"]["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
