"""The one descent: against torch's own loop, early stopping, and what it leaves behind."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lib.geometry.descent import Best, Descent, small_matrices


def bowl(weights):
    return lambda step: (weights - torch.tensor([1.0, -2.0])).square().sum()


@pytest.mark.parametrize("rise", [0.1, 0.3])
def test_a_descent_is_adam_with_the_one_cycle_rate_of_torch(rise):
    ours, theirs = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    Descent([ours], 0.2, 50, rise).run(bowl(ours))
    adam = torch.optim.Adam([theirs], 0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 0.2, total_steps=50, pct_start=rise)
    for step in range(50):
        adam.zero_grad()
        bowl(theirs)(step).backward()
        adam.step()
        cycle.step()
    assert torch.equal(ours, theirs)


def test_it_reaches_the_bottom_of_a_bowl():
    weights = nn.Parameter(torch.zeros(2))
    Descent([weights], 0.2, 300).run(bowl(weights))
    torch.testing.assert_close(weights.data, torch.tensor([1.0, -2.0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("steps", "seen"), [(40, list(range(4, 41, 4))), (3, [1, 2, 3])])
def test_it_is_watched_ten_times_and_every_step_is_numbered(steps, seen):
    weights, numbers, watched = nn.Parameter(torch.zeros(2)), [], []

    def loss(step):
        numbers.append(step)
        return bowl(weights)(step)

    Descent([weights], 0.1, steps).run(loss, watched.append)
    assert numbers == list(range(1, steps + 1)) and watched == seen


def test_the_best_weights_of_all_parts_come_back_with_the_history():
    parts = nn.Linear(1, 1), nn.Linear(1, 1)
    best = Best(*parts)
    for step, loss in enumerate([3.0, 1.0, math.nan, 2.0]):
        for part in parts:
            part.weight.data.fill_(float(step))
        best.watch(step, loss)
    history = best.restore()
    assert [part.weight.item() for part in parts] == [1.0, 1.0]
    np.testing.assert_array_equal(history["step"], [0, 1, 2, 3])
    np.testing.assert_array_equal(history["held_out"], [3.0, 1.0, math.nan, 2.0])


def test_a_fit_that_was_never_finite_says_so():
    best = Best(nn.Linear(1, 1))
    best.watch(0, math.nan)
    with pytest.raises(ValueError, match="never finite, last nan"):
        best.restore()


def test_small_matrices_put_threads_and_subnormals_back():
    tiny, threads = torch.tensor([1e-39]), torch.get_num_threads()
    with pytest.raises(KeyError), small_matrices():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == threads and (tiny * 1.0).item() > 0
