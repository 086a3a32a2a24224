"""The latent model's parts: shapes, loss and the folder that is shipped."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.diffusion import models
from lib.faces import avatars, captions
from lib.training import sd


@pytest.fixture
def untrained(monkeypatch):
    """An untrained autoencoder where the trained one would be."""
    torch.manual_seed(0)
    network = sd.build_autoencoder().eval().requires_grad_(False)
    network.register_to_config(scaling_factor=0.5)
    monkeypatch.setattr(sd, "autoencoder", lambda: network)
    return network


def test_the_autoencoder_loss_is_that_of_its_formula():
    """An exact decoder at zero posterior variance leaves the KL term alone."""

    class Exact(nn.Module):
        def encode(self, images):
            code = torch.cat([images, torch.full_like(images, -30.0)], 1)
            posterior = latents_distribution(code)
            return type("Output", (), {"latent_dist": posterior})

        def decode(self, code):
            return type("Output", (), {"sample": code})

    images = torch.rand(2, 4, 8, 8) * 2 - 1
    kl = 0.5 * (images.square().mean() + 0.0 - 1 + 30.0)
    loss = sd._autoencoder_loss(Exact(), (images,), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(1e-4 * kl.item(), rel=1e-3)


def latents_distribution(code):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return DiagonalGaussianDistribution(code)


def test_the_shipped_folder_loads_as_a_generator_with_the_same_parts(untrained, tmp_path):
    torch.manual_seed(1)
    network = sd.build_unet().eval()
    sd._save_text_to_image(network, tmp_path, {"training": {"steps": 1, "batch": 1}})
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".md", ".safetensors", ".txt"}
    generator = models.load(tmp_path, device="cpu")
    assert generator.latent_shape == (4, 16, 16) and generator.image_shape == (3, 64, 64)
    for key, value in network.state_dict().items():
        assert torch.equal(generator.unet.state_dict()[key], value.half().float()), key
    assert sorted(generator.words) == sorted(captions.WORDS)
    text = "a person with glasses smiling"
    expected = sd.embed([text])[0]
    assert torch.allclose(generator.embed(text, 1)[0], expected, atol=5e-3)


def test_encoding_and_decoding_scale_latents_back_and_forth(untrained):
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    direct = untrained.decode(untrained.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    assert torch.allclose(sd.decode(sd.encode(images)), direct, atol=1e-5)
    assert sd.encode(images).shape == (3, 4, 16, 16)


def test_centred_latents_have_mean_zero_and_the_same_round_trip(untrained):
    images = torch.rand(8, 3, 64, 64) * 2 - 1
    before, code = sd._round_trip(untrained, images), sd.encode(images)
    assert code.mean((0, 2, 3)).abs().max() > 0.01  # there is something to take away
    sd.centre(untrained, images)
    assert sd.encode(images).mean((0, 2, 3)).abs().max() < 1e-6
    assert torch.allclose(sd.encode(images), code - code.mean((0, 2, 3), True), atol=1e-5)
    assert torch.allclose(sd._round_trip(untrained, images), before, atol=1e-5)


def test_training_ends_where_sampling_begins():
    """At t = T an image's colour, the mean of 16 x 16 latents, drowns in that of the noise."""
    alpha = sd._scheduler().alphas_cumprod[-1]
    noise_of_mean = ((1 - alpha) / 256).sqrt()
    assert alpha.sqrt() < 0.3 * noise_of_mean


def test_the_data_pair_each_latent_with_a_caption_of_its_face(untrained, monkeypatch):
    faces = avatars.draw(40)
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 64, 64), np.uint8)
    whole = avatars.Avatars(images, avatars.labels(faces.parts), faces)
    monkeypatch.setattr(avatars, "load", lambda *args, **kwargs: whole)
    said = []
    monkeypatch.setattr(sd, "embed", lambda texts: said.append(texts) or texts)
    count, fetch = sd._latent_data()
    indices = torch.tensor([5, 17, 30] * 30)
    codes, _ = fetch(indices, torch.Generator().manual_seed(0))
    assert count == 40
    assert torch.allclose(codes, sd.encode(avatars.to_float(images))[indices], atol=1e-5)
    (texts,) = said
    empty = texts.count("")
    assert 0 < empty < 30  # a tenth of 90
    full = captions.captions({name: values[:40] for name, values in whole.labels.items()})
    for row, text in zip(indices.tolist(), texts, strict=True):
        phrases = [phrase for phrase in captions.MEANINGS if f" {phrase} " in f"{text} "]
        assert all(f" {phrase} " in f"{full[row]} " for phrase in phrases)


def test_prompt_following_finds_what_a_perfect_model_draws(monkeypatch):
    """A sampler that renders what it is asked for scores one on every phrase."""
    held = avatars.draw(400, "held-out")
    labels = avatars.labels(held.parts)

    def perfect(network, prompts, *, guidance, seed):
        phrase = prompts[0].removeprefix("a face ")
        attribute, classes = captions.MEANINGS[phrase]
        wanted = [avatars.CLASSES[attribute].index(name) for name in classes]
        rows = np.flatnonzero(np.isin(labels[attribute], wanted))[: len(prompts)]
        chosen = avatars.Faces(held.parts[rows], held.jitter[rows])
        return avatars.to_float(avatars.render_faces(chosen, 64, processes=1))

    monkeypatch.setattr(sd, "sample", perfect)
    found = sd.prompt_following(None, each=4)
    assert min(found.values()) == 1.0
    assert len(found) == len(captions.MEANINGS) - 1 and "with pink hair" not in found
