"""Training of f_t by the kit's CLIP, and the classifier that has seen noise."""

import pytest
import torch

from benchmarks import small
from lib import hspace as diffusion_hspace
from lib.diffusion import models
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


def test_the_clip_that_stops_an_edit_knows_nine_in_ten_of_the_faces_that_have_it():
    faces = avatars.load("held-out", 600, pink=False)
    images = avatars.to_float(faces.images)
    has = attributes.labels(images)
    for name in ("glasses", "hat", "smile", "beard", "long hair", "blond hair"):
        found = fits.Enough(name)(images)
        assert float(found[has[name]].double().mean()) == pytest.approx(0.9, abs=0.07), name
        assert float(found[~has[name]].double().mean()) < 0.02, name
    with pytest.raises(ValueError, match="monocle"):
        fits.Enough("monocle")


def test_a_probe_is_fishers_direction_between_two_clouds(monkeypatch):
    faces = avatars.load("held-out", 300)
    rng = torch.Generator().manual_seed(0)
    hat = torch.from_numpy(faces.labels["hat"]) == avatars.CLASSES["hat"].index("yes")
    cloud = torch.randn(300, 3, generator=rng) * torch.tensor([0.1, 1.0, 1.0])
    cloud[hat] += torch.tensor([1.0, 1.0, 0.0])
    parts = iter(cloud.split(128))
    monkeypatch.setattr(fits, "encode", lambda images: next(parts))
    *w, least = fits.probes(faces)["hat"].tolist()
    assert w[0] > 0.98  # the direction that tells them apart, not the one between their means
    share = ((cloud[hat] @ torch.tensor(w)) >= least).double().mean()
    assert float(share) == pytest.approx(0.9, abs=0.02)


def test_finished_training_is_the_change_that_was_trained(tmp_path):
    folder = small.write("celebahq-256", tmp_path / "tiny")
    generator = models.load(folder, device="cpu")
    x, run = generator.noise(4, 0), {"t_edit": 500, "steps": 3}
    direction = fits.text_direction("hat")
    for layer in ("mid_block", "up_blocks.0"):
        fit = fits.fit_block(generator, "hat", x, layer=layer, batch=2, **run)
        again = fits.block_of(generator, fit, layer=layer, **run)
        assert len(fit.history) == 2 and fit.seconds > 0
        assert not any(p.requires_grad for p in again.parameters())
        own = trained.DeltaBlock(generator, layer=layer)
        settings = fits.SETTINGS | run | {"batch": 2}
        trained.train(generator, own, x, fits.encode, direction, **settings)
        assert again.weight_hash == own.weight_hash
    with pytest.raises(ValueError, match="monocle"):
        fits.fit_block(generator, "monocle", x, t_edit=500)


def test_command_writes_small_files_that_load_again(tmp_path, capsys):
    folder = small.write("celebahq-256", tmp_path / "celebahq")
    arguments = ["hat", "--model", str(folder), "--out", str(tmp_path / "out"), "--images", "2"]
    fits.main(arguments)
    known, file, seen = sorted((tmp_path / "out").iterdir())
    assert known.name == "familiar.json" and file.name == "hat.safetensors"
    assert [p.name for p in seen.iterdir()] == ["clip.safetensors"]
    assert file.stat().st_size < 1_000_000
    block = trained.load(models.load(folder, device="cpu"), file)
    assert block.owners and " s, hat.safetensors" in capsys.readouterr().out
    with pytest.raises(ValueError, match="monocle"):
        fits.main(["monocle", *arguments[1:]])


def test_published_settings_run_on_a_small_checkpoint(tmp_path):
    folder = small.write("celebahq-256", tmp_path / "celebahq")
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
