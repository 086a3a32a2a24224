"""The quadtree against the full grid."""

import numpy as np
import pytest
import torch

from lib import slices
from lib.slices import maps, refine, relief


def wave(t):
    return t[:, 1] - 0.5 - 0.25 * torch.sin(2 * np.pi * t[:, 0])


def ring(t):
    return (t - torch.tensor([0.5, 0.45])).norm(dim=1) - 0.3


def hills(t):
    return 0.3 * torch.stack([torch.sin(2 * t[:, 0]), torch.cos(3 * t[:, 1])], 1)


def islands(t):
    centres = torch.tensor([[0.16, 0.27], [0.62, 0.4], [0.81, 0.86], [0.33, 0.72]])
    return torch.cdist(t, centres.double()).min(1).values < 0.08


BORDERS = {
    "small islands": lambda t: islands(t),
    "a jump": lambda t: torch.column_stack([wave(t) > 0, hills(t)]),
    "a steep slope": lambda t: torch.column_stack([torch.tanh(wave(t) / 0.02), hills(t)]),
    "crossing borders": lambda t: torch.column_stack(
        [wave(t) > 0, torch.tanh(ring(t) / 0.01), hills(t)]
    ),
}


@pytest.mark.parametrize("name", BORDERS)
@pytest.mark.parametrize("levels", [6, 7])
def test_refinement_finds_the_ridges_with_a_third_of_the_samples(name, levels):
    calls = []

    def evaluate(t):
        calls.append(t)
        return BORDERS[name](t)

    side = 2**levels + 1
    full = BORDERS[name](slices.grid(side)).reshape(side, side, -1)
    found = refine.refine(evaluate, levels, share=1 / 3)
    used = torch.cat(calls)
    assert len(used) == len(used.unique(dim=0)) == found.sampled.sum() <= side**2 / 3
    reliefs = [np.sqrt(relief.neighbour_trace(v, 1 / (side - 1))) for v in (found.values, full)]
    ridge, true = (relief.ridges(m) for m in reliefs)
    assert 0.01 < true.mean() < 0.2
    assert maps.overlap(ridge, true) >= 0.9
    truth = full.double().numpy()
    missed = found.values.reshape(truth.shape) - truth
    assert np.linalg.norm(missed) < 0.01 * np.linalg.norm(truth - truth.mean((0, 1)))


def test_refinement_keeps_what_it_sampled_and_interpolates_the_rest():
    def plain(t):
        return torch.column_stack([1 + 2 * t[:, 0] - 3 * t[:, 1], (t[:, 0] > 0.31) * 1.0])

    low, high = (0.2, 0.1), (0.6, 0.3)
    found = refine.refine(plain, 5, share=0.3, low=low, high=high)
    full = plain(slices.grid(33, low=low, high=high)).reshape(33, 33, 2).numpy()
    np.testing.assert_array_equal(found.values[found.sampled], full[found.sampled])
    np.testing.assert_allclose(found.values[..., 0], full[..., 0], atol=1e-12)
    assert 0.1 < found.share < 0.3


def test_refinement_spends_points_only_where_values_change():
    found = refine.refine(lambda t: t[:, 0] > 0.3, 6, share=1.0, tolerance=0.5)
    edge = np.flatnonzero(np.diff(found.values[:, 0]))
    assert edge.tolist() == [19]
    near = found.sampled[16:24].mean()
    assert near > 0.4 and found.sampled[40:].mean() < 0.03
    np.testing.assert_array_equal(found.values, np.repeat(found.values[:, :1], 65, 1))


def test_refinement_without_a_limit_is_the_full_grid():
    found = refine.refine(lambda t: torch.sin(9 * t[:, 0] * t[:, 1]) + t.sum(1), 4, share=1.0)
    t = slices.grid(17)
    expected = torch.sin(9 * t[:, 0] * t[:, 1]) + t.sum(1)
    np.testing.assert_array_equal(found.values[found.sampled], expected.view(17, 17)[found.sampled])
    assert found.share > 0.95


@pytest.mark.parametrize("options", [{"coarse": 0}, {"coarse": 6}, {"share": 0.05}])
def test_refinement_that_cannot_start_is_refused(options):
    with pytest.raises(ValueError, match="coarse"):
        refine.refine(wave, 5, **options)
