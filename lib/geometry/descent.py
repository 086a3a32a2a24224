"""How every fit of this room descends: Adam with a one-cycle rate, the best weights kept."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm


class Descent:
    """Adam whose rate rises over a share of the steps and falls to nothing in the others."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, steps: int, rise: float = 0.1
    ):
        self.steps = steps
        self.optimizer = torch.optim.Adam(list(parameters), rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rate, total_steps=steps, pct_start=rise
        )

    def run(
        self,
        loss: Callable[[int], Tensor],
        watch: Callable[[int], None] | None = None,
        *,
        bar: tqdm | None = None,
    ) -> None:
        """Descend loss(step), steps counted from one; `watch(step)` is called ten times."""
        for step in range(1, self.steps + 1):
            self.optimizer.zero_grad()
            loss(step).backward()
            self.optimizer.step()
            self.schedule.step()
            if bar is not None:
                bar.update()
            if watch and step % max(1, self.steps // 10) == 0:
                watch(step)


class Best:
    """Held-out losses of a fit, and the weights of its parts where the loss was smallest."""

    def __init__(self, *parts: nn.Module):
        self.parts, self.history = parts, {"step": [], "held_out": []}
        self.least, self.weights = math.inf, []

    def watch(self, step: int, loss: float) -> None:
        """Record a held-out loss; keep the weights if it is the smallest so far."""
        self.history["step"].append(step)
        self.history["held_out"].append(loss)
        if loss < self.least:
            self.least = loss
            self.weights = [copy.deepcopy(part.state_dict()) for part in self.parts]

    def restore(self) -> dict[str, np.ndarray]:
        """Early stopping: the best weights, in evaluation mode again; returns the history."""
        if not self.weights:
            raise ValueError(
                f"the held-out loss was never finite, last {self.history['held_out'][-1]}: the "
                "network or natural(t) overflows; give inputs and outputs of order one"
            )
        for part, weights in zip(self.parts, self.weights, strict=True):
            part.load_state_dict(weights)
            part.eval()
        return {name: np.array(values) for name, values in self.history.items()}


def progress(label: str, total: int) -> tqdm:
    """A bar that is silent where nobody watches and gone when it is full."""
    return tqdm(total=total, desc=label, disable=None, leave=False)


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Sharp posteriors are full of subnormal floats, which slow a CPU down twenty times or more."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def small_matrices() -> Iterator[None]:
    """Subnormals flushed and one thread: on matrices this small a second one mostly waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with subnormals_flushed():
            yield
    finally:
        torch.set_num_threads(threads)
