"""Which images a model knows: their way to noise and back against held-out ones."""

import pytest
import torch

from lib.diffusion import familiar, models
from lib.diffusion.sampling import invert


def noise(n, seed=0, **options):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), **options)


def test_latents_that_are_noise_have_the_statistics_of_noise():
    found = familiar.statistics(noise(200))
    assert found.shape == (200, 5) and float(found.mean(0).abs().max()) < 0.02


@pytest.mark.parametrize("axis, place", [(3, 2), (2, 3), (1, 4)])
def test_neighbours_that_agree_are_seen(axis, place):
    z = noise(50)
    smooth = (z + z.roll(1, axis)) / 2**0.5
    moved = (familiar.statistics(smooth) - familiar.statistics(z)).mean(0)
    assert moved[place] > 0.3 and all(abs(moved[k]) < 0.1 for k in {2, 3, 4} - {place})


def test_what_is_like_the_held_out_is_known_and_a_stranger_is_named(gaussian):
    held_out = 0.1 * torch.randn(60, *gaussian.image_shape, generator=torch.Generator())
    known = familiar.reference(gaussian, held_out)
    latents = invert(gaussian, held_out, steps=familiar.STEPS)
    assert float(familiar.strangeness(gaussian, held_out, latents, known).max()) <= 1
    lost = familiar.strangeness(gaussian, held_out, latents.flip(0), known)
    assert float(lost.min()) > 1  # their latents are noise, but lead elsewhere
    flat = torch.full_like(held_out[:2], 0.9)
    both = torch.cat([held_out[:1], flat])
    latents = invert(gaussian, both, steps=familiar.STEPS)
    with pytest.warns(UserWarning, match=r"images 1, 2 \(from 0\)"):
        fine = familiar.warn(gaussian, both, latents, known)
    assert fine.tolist() == [True, False, False]


def test_the_shipped_reference_belongs_to_the_shipped_model(gaussian):
    known = familiar.shipped(models.load("avatars-ddpm", device="cpu"))
    assert known.limit > 0 and torch.linalg.eigvalsh(known.precision).min() > 0
    with pytest.raises(ValueError, match="no held-out images"):
        familiar.shipped(gaussian)


def test_a_reference_is_read_as_it_was_written(gaussian, tmp_path, monkeypatch):
    known = familiar.Reference(torch.ones(5).double(), torch.eye(5).double(), 9.0, 0.1)
    monkeypatch.setattr(familiar, "SHIPPED", tmp_path / "familiar.json")
    familiar.save(gaussian, known, familiar.SHIPPED)
    again = familiar.shipped(gaussian)
    assert torch.equal(again.mean, known.mean) and torch.equal(again.precision, known.precision)
    assert again[2:] == (9.0, 0.1) and [p.name for p in tmp_path.iterdir()] == ["familiar.json"]
