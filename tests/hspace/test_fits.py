"""Training of f_t by the kit's CLIP, and the classifier that has seen noise."""

import pytest
import torch

from lib import hspace as diffusion_hspace
from lib.diffusion import models, rehearsal
from lib.diffusion.sampling import time_grid
from lib.faces import attributes, avatars, captions
from lib.hspace import fits, published, trained

NAMES = list(avatars.PARTS)


def test_templates_are_pairs_of_the_grammar_that_differ_in_the_attribute_alone():
    for name in attributes.ATTRIBUTES:
        pairs = fits.templates(name)
        captions.check([text for pair in pairs for text in pair])
        assert len(pairs) > 10 and all(a != b for a, b in pairs)


def test_text_direction_is_that_of_drawing_the_attribute_on():
    faces = avatars.draw(16, "held-out", seed=5)
    plain = faces.parts.copy()
    plain[:, NAMES.index("eyes")] = list(avatars.PARTS["eyes"]).index("open")
    edited = plain.copy()
    edited[:, NAMES.index("eyes")] = list(avatars.PARTS["eyes"]).index("glasses")
    without, having = (
        fits.encode(
            avatars.to_float(avatars.render_faces(avatars.Faces(p, faces.jitter), 32, processes=1))
        )
        for p in (plain, edited)
    )
    change = (having - without).mean(0)
    cosine = {
        name: float(torch.cosine_similarity(change, fits.text_direction(name), dim=0))
        for name in ("glasses", "hat", "smile", "beard")
    }
    assert max(cosine, key=cosine.get) == "glasses" and cosine["glasses"] > 0.3


def test_gradient_of_the_classifier_is_its_finite_difference():
    alphas = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    network = fits.train_classifier(alphas, updates=2, batch=8)
    gradient = fits.ClassGradient(network, alphas, "glasses")
    x, v = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    level = (1 - alphas[400]).sqrt().float().expand(2)

    def value(x):
        z = network(x, level)["eyewear"].log_softmax(1)
        return (z[:, 1:].logsumexp(1)).double()

    numeric = (value(x + 0.01 * v) - value(x - 0.01 * v)) / 0.02
    exact = (gradient(x, 400) * v).sum((1, 2, 3)).double()
    torch.testing.assert_close(exact, numeric, rtol=0.05, atol=1e-4)


def test_classifier_learns_from_noisy_faces():
    alphas = torch.full((10,), 0.9, dtype=torch.float64)
    network = fits.train_classifier(alphas, updates=60, batch=32)
    faces = avatars.load("held-out", 200, pink=False)
    logits = network(avatars.to_float(faces.images), torch.zeros(len(faces.images)))
    right = logits["hat"].argmax(1) == torch.from_numpy(faces.labels["hat"]).long()
    assert float(right.float().mean()) > 0.85  # always "no" scores 0.76


def test_finished_training_is_the_change_that_was_trained(tmp_path):
    folder = rehearsal.write_random("celebahq-256", tmp_path / "tiny", tiny=True)
    generator = models.load(folder, device="cpu")
    x, run = generator.noise(4, 0), {"t_edit": 500, "steps": 3}
    direction = fits.text_direction("hat")
    for direct in (False, True):
        fit = fits.fit_block(generator, "hat", x, direct=direct, batch=2, **run)
        again = fits.block_of(generator, fit, direct=direct, **run)
        assert len(fit.history) == 2 and fit.seconds > 0
        assert not any(p.requires_grad for p in again.parameters())
        times = [t for t in time_grid(3) if t >= 500]
        own = trained.DirectDelta(generator, times) if direct else trained.DeltaBlock(generator)
        settings = fits.SETTINGS | run | {"batch": 2}
        trained.train(generator, own, x, fits.encode, direction, **settings)
        assert again.weight_hash == own.weight_hash
    with pytest.raises(ValueError, match="monocle"):
        fits.fit_block(generator, "monocle", x, t_edit=500)


def test_command_writes_small_files_that_load_again(tmp_path, capsys):
    folder = rehearsal.write_random("celebahq-256", tmp_path / "celebahq", tiny=True)
    arguments = ["hat", "--model", str(folder), "--out", str(tmp_path / "out"), "--images", "2"]
    fits.main(arguments)
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "hat.safetensors" and file.stat().st_size < 1_000_000
    block = trained.load(models.load(folder, device="cpu"), file)
    assert block.owners and " s, written to hat.safetensors" in capsys.readouterr().out
    with pytest.raises(ValueError, match="monocle"):
        fits.main(["monocle", *arguments[1:]])


def test_published_settings_run_on_a_small_checkpoint(tmp_path):
    folder = rehearsal.write_random("celebahq-256", tmp_path / "celebahq", tiny=True)
    generator = models.load(folder, device="cpu")
    settings = published.DATA_SETS[published.data_set(str(folder))].settings
    assert len(settings) == 13 and all(0.4 < s.cosine < 1 for s in settings)
    for s in settings:  # the threshold of the text is the cosine times 0.33 on a rising curve
        assert (s.t_edit > 400) == (s.cosine > 0.5)
    x = generator.noise(2, 0)
    row = published.edit(
        generator, settings[0], settings[:1], t_edit=500, t_boost=100, latents=x, test=x, steps=3
    )
    assert row.cosine.shape == (2,) and float((row.edited - row.plain).abs().max()) > 0
    with pytest.raises(ValueError, match="clip_folder"):
        published.text_direction(settings[1], "")
    with pytest.raises(ValueError, match="AFHQ-dog"):
        published.data_set("my/dog-256")


@pytest.mark.parametrize("file", sorted(fits.FOLDER.glob("*.safetensors")), ids=lambda f: f.stem)
def test_shipped_networks_belong_to_the_shipped_model_and_push_their_attribute(file):
    generator = models.load("avatars-ddpm", device="cpu")
    x, run = generator.noise(24, 30_000), {"steps": 8, "t_edit": 514}
    change, name = trained.load(generator, file), file.stem.replace("-", " ")
    plain = diffusion_hspace.reconstruct(generator, x, steps=8)
    pushed = diffusion_hspace.edit(generator, x, change, **run, strength=1)
    pulled = diffusion_hspace.edit(generator, x, change, **run, strength=-1)
    gains = [attributes.score(plain, image, name).gain for image in (pushed, pulled)]
    assert gains[0] > max(0.1, gains[1] + 0.1)


def test_every_attribute_of_the_model_has_its_file():
    expected = {name.replace(" ", "-") for name in attributes.ATTRIBUTES if name != "pink hair"}
    assert {file.stem for file in fits.FOLDER.glob("*.safetensors")} == expected
