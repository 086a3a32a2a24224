"""The models that lie in the repository: they load with the network off and do their job."""

import re
import socket

import pytest
import torch

from lib.diffusion import folders, models, sampling
from lib.faces import judge

TEXTS = (".json", ".md")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("snapshot", ["", "snapshot-1-4", "snapshot-1-16"])
def test_the_pixel_model_and_its_snapshots_draw_faces(snapshot):
    generator = models.load(folders.MODELS / "avatars-ddpm" / snapshot, device="cpu")
    assert generator.latent_shape == (3, 32, 32) and generator.text_encoder is None
    images = sampling.ddim(generator, generator.noise(2, 0), steps=10)
    assert images.isfinite().all() and images.std() > 0.2


def test_a_path_from_the_repository_works_in_every_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = "models/avatars-ddpm/snapshot-1-4"
    assert folders.locate(folder, None)[0].samefile(folders.ROOT / folder)


def test_the_text_model_draws_what_it_is_asked_for():
    generator = models.load("avatars-sd", device="cpu")
    assert generator.latent_shape == (4, 16, 16)
    asked = ["a face with sunglasses"] * 4 + ["a face without glasses"] * 4
    noise = generator.noise(4, 0).repeat(2, 1, 1, 1)  # the words alone differ
    images = sampling.ddim(generator, noise, steps=10, prompt=asked, guidance=2.0).clamp(-1, 1)
    read = judge.logits(images)["eyewear"].argmax(1)
    names = judge.classes()["eyewear"]
    assert (read[:4] == names.index("sunglasses")).sum() >= 3
    assert (read[4:] == names.index("none")).sum() >= 3


def test_words_outside_the_captions_are_still_read():
    generator = models.load("avatars-sd", device="cpu")
    states = generator.embed(["a face with a hat", "a face with a cat"], 2)
    assert torch.isfinite(states).all() and not torch.equal(states[0], states[1])


def test_all_shipped_weights_fit_the_budget():
    size = sum(path.stat().st_size for path in folders.MODELS.rglob("*") if path.is_file())
    assert size <= 60e6


def test_no_shipped_file_names_the_machine_it_was_made_on():
    texts = [path.read_text() for path in folders.MODELS.rglob("*") if path.suffix in TEXTS]
    assert texts and not any(re.search(r"/(home|root|tmp|work|Users)/", text) for text in texts)
