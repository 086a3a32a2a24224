"""What a network brings to be trained, and where its training lives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
BUILD, MODELS = ROOT / "build" / "training", ROOT / "models"


@dataclass(frozen=True)
class Task:
    """What the trainer must know to train one network.

    `build()` makes it, `load(folder)` reads its shipped weights. `data()` gives (count, fetch)
    with `fetch(indices, rng) -> batch`, a tuple of CPU tensors. `loss(network, batch, rng)` is a
    scalar; `rng` is a CPU generator for this step alone. `save(network, folder, metrics)` writes
    weights and card, `evaluate(network)` measures, `samples(network)` are images to look at.
    A task that is not `shipped` is a part of a later one and is saved under build/training/parts.
    `snapshots` {name: share of the steps} keeps the average of those moments, saved beside the
    final weights by `save_snapshot(network, folder)`.
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[Path], nn.Module]
    data: Callable[[], tuple[int, Callable]]
    loss: Callable[[nn.Module, tuple, torch.Generator], Tensor]
    save: Callable[[nn.Module, Path, dict], None]
    evaluate: Callable[[nn.Module], dict]
    samples: Callable[[nn.Module], Tensor] | None = None
    save_snapshot: Callable[[nn.Module, Path], None] | None = None
    snapshots: dict[str, float] = field(default_factory=dict)
    shipped: bool = True
    steps: int = 1000
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 1e-2
    average: float = 0.999
    seed: int = 0
