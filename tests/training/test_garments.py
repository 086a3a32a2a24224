"""The networks of the photographs: sizes, halves, and that nothing is mirrored."""

from types import SimpleNamespace

import torch

from lib.diffusion import folders, models, sampling
from lib.garments import photographs
from lib.training import garments

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def test_the_pixel_model_is_within_its_budget_and_draws_garments():
    count = sum(p.numel() for p in garments.build_garments().parameters())
    assert count <= 3_000_000
    files = [p for p in (folders.MODELS / "garments-ddpm").rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    generator = models.load("garments-ddpm", device="cpu")
    assert generator.latent_shape == (1, 32, 32) and generator.text_encoder is None
    images = sampling.ddim(generator, generator.noise(4, 0), steps=10)
    assert images.isfinite().all() and images.std() > 0.2


def test_no_photograph_is_mirrored_in_training():
    """The exact noise of one lopsided image has no loss, which mirrored copies would spoil."""
    image = photographs.held_out().images[:1]

    def oracle(noisy, t):
        alpha = ALPHAS[t.view(-1)].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=((noisy - alpha.sqrt() * image) / (1 - alpha).sqrt()).float())

    loss = garments.garments_task().loss
    batch, rng = (image.expand(64, -1, -1, -1),), torch.Generator().manual_seed(0)
    assert not torch.equal(image, image.flip(-1)) and loss(oracle, batch, rng) < 1e-6


def test_the_judges_learn_from_different_halves(monkeypatch):
    whole = photographs.held_out()
    monkeypatch.setattr(photographs, "load", lambda split: whole)
    halves = []
    for name in "ab":
        count, fetch = garments.judge_task(name).data()
        halves.append(fetch(torch.arange(count), None)[0])
    both = torch.stack(halves, 1).flatten(0, 1)
    assert torch.equal(both, whole.images)
