"""One trainer for every network of the kit.

    python -m lib.training.train [NAME ...] [--from models] [--steps N] [--limit N]

A task brings a network, data, a loss and a way to save; the trainer brings devices, mixed
precision, averaging, checkpoints and the learning-rate curve. Step s, counted with those before a
warm start, draws its batch and its noise from the seed and s alone, so an interrupted run, started
again, equals an uninterrupted one (bit for bit on one machine's CPU).
"""

import argparse
import copy
import json
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.diffusion import images
from lib.training import autoencoder, ddpm, garments, scorers, sd
from lib.training.task import BUILD, MODELS, Task


def train(
    task: Task,
    *,
    build: Path = BUILD,
    models: Path = MODELS,
    steps: int | None = None,
    start: Path | None = None,
    limit: int | None = None,
    checkpoint_every: float = 180.0,
) -> dict:
    """Train a task to its last step, or continue its checkpoint, and save it; returns its metrics.

    `start` is a folder of shipped models to begin from, with a short warm-up; steps and minutes
    that they have behind them are added up, and their snapshots are kept. `limit` stops after that
    many steps, leaving a checkpoint (and returns {}). Raises ValueError when a checkpoint belongs
    to other settings, `steps` or `limit` is below 1, or the folder of a warm start lacks a
    snapshot, and FloatingPointError when the loss is no longer finite.
    """
    steps = task.steps if steps is None else steps
    if steps < 1 or (limit is not None and limit < 1):
        raise ValueError(f"steps = {steps}, limit = {limit}: expected at least 1.")
    run = _prepare(task, Path(build) / task.name, steps, start)
    _resume(run)
    last = steps if limit is None else min(steps, run.step + limit)
    if run.step < last:
        _advance(task, run, last, checkpoint_every)
    run.accelerator.wait_for_everyone()
    if last < steps or not run.accelerator.is_main_process:
        return {}
    return _finish(task, run, Path(models) if task.shipped else Path(build) / "parts", start)


@dataclass
class _Run:
    """The state of a training: what a checkpoint holds, and where it goes."""

    settings: dict
    folder: Path
    accelerator: Accelerator
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list = field(default_factory=list)
    seconds: float = 0.0


def _prepare(task: Task, folder: Path, steps: int, start: Path | None) -> _Run:
    for name in task.snapshots if start else ():
        if not (Path(start) / task.name / name).is_dir():
            raise ValueError(
                f"{task.name} to start from has no {name}, which is kept beside the weights; "
                "start from a complete folder, or from nothing."
            )
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator()
    torch.manual_seed(task.seed)
    network = task.load(Path(start) / task.name) if start else task.build()
    network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False).eval().to(accelerator.device)
    optimizer = torch.optim.AdamW(network.parameters(), task.rate, weight_decay=task.weight_decay)
    network, optimizer = accelerator.prepare(network, optimizer)
    settings = _settings(task, steps, start, accelerator)
    return _Run(settings, folder, accelerator, network, average, optimizer)


def _accelerator() -> Accelerator:
    """Half precision on a GPU; on a CPU whatever ACCELERATE_MIXED_PRECISION asks for."""
    if not torch.cuda.is_available():
        return Accelerator()
    return Accelerator(mixed_precision="bf16" if torch.cuda.is_bf16_supported() else "fp16")


def _settings(task: Task, steps: int, start: Path | None, accelerator: Accelerator) -> dict:
    """All that a resumed run must share with the run that it continues."""
    names = ("name", "batch", "rate", "weight_decay", "average", "seed")
    return {name: getattr(task, name) for name in names} | {
        "steps": steps,
        "warm_start": start is not None,
        "earlier_steps": _earlier(task, start)[0],
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
    }


def _earlier(task: Task, start: Path | None) -> tuple[int, float]:
    """Steps and minutes behind the weights of a warm start; none where they are not recorded."""
    path = Path(start or "") / task.name / "metrics.json"
    if start is None or not path.exists():
        return 0, 0.0
    metrics = json.loads(path.read_text(encoding="utf-8"))
    training, cost = metrics["training"], metrics.get("cost", {})
    return training["steps"] + training.get("earlier_steps", 0), cost.get("minutes", 0.0)


def _advance(task: Task, run: _Run, last: int, every: float) -> None:
    """Steps up to `last`; a checkpoint now and then, at the end and on interrupt."""
    count, fetch = task.data()
    share = _Share(count, task.batch, task.seed, run.accelerator)
    run.network.train()
    saved = begun = time.monotonic()
    before, whole = run.seconds, True
    bar = tqdm(
        total=run.settings["steps"], initial=run.step, desc=task.name, unit="step",
        disable=not run.accelerator.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else 60.0,  # a log needs a line a minute
    )  # fmt: skip
    try:
        while run.step < last:
            indices, rng = share(run.settings["earlier_steps"] + run.step)
            batch = fetch(indices, rng)
            whole = False
            _step(task, run, batch, rng)
            whole = True
            bar.update()
            run.seconds = before + time.monotonic() - begun
            if time.monotonic() - saved > every:
                _checkpoint(run)
                saved = time.monotonic()
    finally:
        bar.close()
        if whole:  # a step cut in two would not resume exactly: then the last checkpoint stands
            _checkpoint(run)


def _step(task: Task, run: _Run, batch: tuple, rng: torch.Generator) -> None:
    """One update of the network and of its average."""
    batch = tuple(part.to(run.accelerator.device) for part in batch)
    torch.manual_seed(rng.initial_seed())  # for layers that draw by themselves, such as dropout
    for group in run.optimizer.param_groups:
        group["lr"] = task.rate * rate_factor(run.step, run.settings)
    with run.accelerator.autocast():
        loss = task.loss(run.network, batch, rng)
    run.accelerator.backward(loss)
    run.accelerator.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    _average(run.average, run.accelerator.unwrap_model(run.network), task.average, run.step)
    run.losses.append(loss.detach())
    run.step += 1
    if run.settings["warm_start"]:  # the early snapshots are those of the run that it continues
        return
    for name, share in task.snapshots.items():
        if run.step == max(1, round(share * run.settings["steps"])):
            _write(run.average.state_dict(), run.folder / f"{name}.pt")


class _Share:
    """Which samples step s reads on this process: a function of seed and s alone."""

    def __init__(self, count: int, batch: int, seed: int, accelerator: Accelerator) -> None:
        if count < batch:
            raise ValueError(f"the data hold {count} samples, expected a batch of {batch}.")
        self.count, self.batch, self.seed = count, batch, seed
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.epoch, self.order = -1, torch.empty(0)

    def __call__(self, step: int) -> tuple[Tensor, torch.Generator]:
        per_epoch = self.count // self.batch
        epoch, place = divmod(step, per_epoch)
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed((self.seed << 32) + epoch)
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=shuffle)
        mine = self.order[place * self.batch : (place + 1) * self.batch][self.rank :: self.ranks]
        number = ((self.seed << 32) + step) * self.ranks + self.rank
        return mine, torch.Generator().manual_seed(number + (1 << 48))


def rate_factor(step: int, settings: dict) -> float:
    """Learning rate over `task.rate`: linear warm-up, then half a cosine down to 1% of its peak.

    The peak is 1, and 0.4 after a warm start: at the full rate trained weights first get worse
    (the loss of avatars-ddpm doubled, and took half of the continuation to come back).
    """
    warm = min(100 if settings["warm_start"] else 500, settings["steps"] // 10)
    peak = 0.4 if settings["warm_start"] else 1.0
    if step < warm:
        return peak * (step + 1) / warm
    turn = math.pi * (step - warm) / max(1, settings["steps"] - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(turn)))


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and statistics, shorter at the start."""
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    ours, theirs = average.state_dict(), network.state_dict()
    for name, value in ours.items():
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value.dtype), weight)
        else:
            value.copy_(theirs[name])


def _checkpoint(run: _Run) -> None:
    """Write the state in one move, from the main process alone."""
    if not run.accelerator.is_main_process:
        return
    run.losses[:] = [float(loss) for loss in run.losses]
    if not all(map(math.isfinite, run.losses)):
        name = run.settings["name"]
        raise FloatingPointError(f"{name}: the loss is not finite by step {run.step}.")
    scaler = run.accelerator.scaler
    state = {
        "settings": run.settings,
        "step": run.step,
        "losses": run.losses,
        "seconds": run.seconds,
        "network": run.accelerator.unwrap_model(run.network).state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
    }
    _write(state, run.folder / "checkpoint.pt")
    _draw_losses(run.folder, run.losses, run.settings["name"])


def _write(state: dict, path: Path) -> None:
    """Save in one move."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(run: _Run) -> None:
    """Continue from the checkpoint in the folder, if there is one."""
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path.name} of {run.settings['name']} is damaged ({type(error).__name__}): delete it "
            "to begin anew"
        ) from error
    if state["settings"] != run.settings:
        raise ValueError(
            f"{path.name} of {run.settings['name']} was made with {state['settings']}, not with "
            f"{run.settings}; use the same settings or delete the folder {run.folder.name}/ of it."
        )
    run.accelerator.unwrap_model(run.network).load_state_dict(state["network"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.accelerator.scaler and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.losses = state["step"], state["losses"]
    run.seconds = state.get("seconds", 0.0)


def _finish(task: Task, run: _Run, models: Path, start: Path | None) -> dict:
    """Measure the averaged network, save it to `models`/NAME in one move, draw its samples."""
    average = run.average.to("cpu", memory_format=torch.contiguous_format)
    metrics = _history(task, run, start) | task.evaluate(average)
    if task.samples is not None:
        images.save(task.samples(average).clamp(-1, 1), run.folder / "samples.png")
    with _replaced(models / task.name) as folder:
        task.save(average, folder, metrics)
        _save_snapshots(task, run, start, folder)
        text = json.dumps(metrics, indent=1)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _history(task: Task, run: _Run, start: Path | None) -> dict:
    """Settings, loss curve (100 points) and cost, with the minutes behind a warm start."""
    curve = [round(part.mean().item(), 6) for part in torch.tensor(run.losses).chunk(100)]
    minutes = run.seconds / 60 + _earlier(task, start)[1]
    hardware = f"{torch.get_num_threads()} CPU thread(s)"
    if run.accelerator.device.type == "cuda":
        hardware = f"{run.accelerator.num_processes} x {torch.cuda.get_device_name()}"
    return {
        "training": run.settings | {"final_loss": curve[-1], "loss_curve": curve},
        "cost": {"minutes": round(minutes, 1), "hardware": hardware},
    }


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def _save_snapshots(task: Task, run: _Run, start: Path | None, folder: Path) -> None:
    """The averages of early moments: of this run, or as the folder of the warm start has them."""
    for name in task.snapshots:
        if start is not None:
            shutil.copytree(Path(start) / task.name / name, folder / name)
            continue
        early = copy.deepcopy(run.average)
        early.load_state_dict(torch.load(run.folder / f"{name}.pt", weights_only=True))
        task.save_snapshot(early, folder / name)


def _draw_losses(folder: Path, losses: list[float], name: str) -> None:
    from matplotlib.figure import Figure

    temporary = folder / "loss.json.partial"
    temporary.write_text(json.dumps([round(loss, 6) for loss in losses]), encoding="utf-8")
    os.replace(temporary, folder / "loss.json")
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=name, yscale="log")
    axes.plot(losses, color="0.8")
    width = max(1, len(losses) // 100)
    smooth = torch.tensor(losses).unfold(0, width, 1).mean(1)
    axes.plot(range(width - 1, len(losses)), smooth)
    figure.savefig(folder / "loss.png", dpi=100)


def tasks() -> dict[str, Callable[[], Task]]:
    """Every network of the kit in the order of training, {name: function that gives its task}."""
    return scorers.TASKS | ddpm.TASKS | autoencoder.TASKS | sd.TASKS | garments.TASKS


def main(arguments: list[str] | None = None) -> int:
    """The command line: train the named tasks, or all in order; return the exit status."""
    known = tasks()
    parser = argparse.ArgumentParser(description="Train the embedded models.")
    parser.add_argument("names", nargs="*", help=f"tasks among {', '.join(known)}; default all")
    parser.add_argument("--from", dest="start", type=Path, help="warm start, e.g. from models")
    parser.add_argument("--steps", type=int, help="instead of the task's own number")
    parser.add_argument("--limit", type=int, help="stop after so many steps, with a checkpoint")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}, expected one of {', '.join(known)}")
    for name in chosen.names or known:
        try:
            metrics = train(
                known[name](), steps=chosen.steps, start=chosen.start, limit=chosen.limit
            )
        except KeyboardInterrupt:
            print(f"interrupted, {name} is kept to its last whole step, run again", file=sys.stderr)
            return 130
        print(json.dumps({name: metrics}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
