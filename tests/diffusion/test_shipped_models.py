"""The models that lie in the repository: they load with the network off and do their job."""

import hashlib
import json
import re
import socket

import pytest
from safetensors import safe_open

from lib.diffusion import folders, models, sampling
from lib.faces import captions, judge

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


@pytest.mark.parametrize(
    ("prompt", "word", "near"),
    [
        ("a xylophone", "xylophone", "beard"),
        ("an old person", "an", "a"),
        ("a man", "man", "person"),
        ("a face with a cat", "cat", "hat"),
        ("a face, smiling", "face,", "face"),
        ("a lasses", "lasses", "glasses"),  # a piece that the tokenizer knows whole
    ],
)
def test_words_outside_the_captions_are_refused_by_name(prompt, word, near):
    generator = models.load("avatars-sd", device="cpu")
    for given in (prompt, ["a face", prompt]):
        with pytest.raises(ValueError, match=rf"word '{word}' is unknown.*\b{near}\b"):
            generator.embed(given, 2)
    with pytest.raises(ValueError, match=f"word '{word}'"):
        generator.epsilon(generator.noise(1, 0), 1, prompt="a face", guidance=2.0, negative=prompt)


def test_every_caption_is_read_and_the_words_are_those_of_the_captions():
    generator = models.load("avatars-sd", device="cpu")
    assert set(generator.words) == set(captions.WORDS)
    said = [f"{subject} {text}" for subject in captions.SUBJECTS for text in captions.MEANINGS]
    said += ["", "A Face with GLASSES"]
    assert len(generator.embed(said, len(said))) == len(said)
    for word in generator.words:  # a token each, so that its embedding was trained
        assert len(generator.tokenizer(word).input_ids) == 3, word


def test_a_prompt_that_is_no_text_is_refused():
    generator = models.load("avatars-sd", device="cpu")
    with pytest.raises(ValueError, match="3 is of type int; give a text"):
        generator.embed(["a face", 3], 2)


def test_the_trained_shifts_belong_to_the_shipped_model():
    """Their files store the hash of its weights, recomputed here byte by byte."""
    generator = models.load("avatars-ddpm", device="cpu")
    digest = hashlib.sha256(f"epsilon{generator.alphas.tolist()}".encode())
    for name, value in generator.unet.state_dict().items():
        digest.update(f"{name}torch.float32{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    assert generator.weight_hash == digest.hexdigest()[:16]
    files = sorted((folders.MODELS / "hspace").glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as stored:
            assert json.loads(stored.metadata()["owners"]) == [generator.weight_hash], file
    assert files


def test_all_shipped_weights_fit_the_budget():
    size = sum(path.stat().st_size for path in folders.MODELS.rglob("*") if path.is_file())
    assert size <= 60e6


def test_no_shipped_file_names_the_machine_it_was_made_on():
    texts = [path.read_text() for path in folders.MODELS.rglob("*") if path.suffix in TEXTS]
    assert texts and not any(re.search(r"/(home|root|tmp|work|Users)/", text) for text in texts)
