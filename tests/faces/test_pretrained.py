"""The published scores: our part against the libraries' own, and what is missing is named."""

import importlib.util
import sys

import pytest
import torch

from lib.faces import pretrained

IMAGES = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
HAS_EXTRA = bool(importlib.util.find_spec("torchmetrics"))
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="the extra `metrics` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a tiny CLIP with random weights and the words of the kit."""
    from transformers import CLIPConfig, CLIPModel

    from lib.faces import captions

    words, folder = captions.tokenizer(), tmp_path_factory.mktemp("clip")
    tower = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 24}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_the_clip_score_is_a_hundred_times_the_cosine_of_the_networks_own_embeddings(folder):
    from transformers import CLIPModel, CLIPTokenizer

    texts = ["a face", "a person with a hat", "smiling"]
    network, words = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    score = pretrained.clip_score(IMAGES, texts, model=folder)
    pixels = pretrained.clip_pixels(IMAGES, 32)
    with torch.no_grad():
        output = network(pixel_values=pixels, **words(texts, padding=True, return_tensors="pt"))
    expected = 100 * (output.image_embeds * output.text_embeds).sum(1)
    assert torch.allclose(score, expected, atol=1e-3)
    one = pretrained.clip_score(IMAGES, texts[0], model=folder)
    assert torch.allclose(one[0], score[0], atol=1e-4)


def test_pixels_are_prepared_as_the_library_prepares_them():
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    bytes_ = ((IMAGES + 1) * 127.5).round().to(torch.uint8)
    smooth = torch.nn.functional.avg_pool2d(bytes_.float(), 5, 1, 2).round().to(torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in smooth]
    library = CLIPImageProcessorPil()(pictures, return_tensors="pt")["pixel_values"]
    ours = pretrained.clip_pixels(smooth / 127.5 - 1, 224)
    assert ours.shape == library.shape
    assert float((ours - library).abs().max()) < 0.02  # the library rounds to bytes between steps


def some_images(n=3, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def tower():
    return pretrained.image_tower(None)


def test_embeddings_have_unit_length_and_belong_to_the_row(tower):
    images = some_images()
    found = tower(images)
    assert found.shape == (3, 32)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(tower(images[1:2]), found[1:2], rtol=0, atol=1e-5)
    assert float((found[0] - found[1]).norm()) > 1e-3


def test_the_tower_sees_what_the_librarys_own_processor_makes(tower):
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    array = ((some_images(1, 224)[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    pixels = CLIPImageProcessorPil()(Image.fromarray(array.numpy()), return_tensors="pt")
    expected = tower.network(**pixels).image_embeds
    found = tower(array.permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(found, expected / expected.norm(), rtol=0, atol=1e-4)


def test_a_cache_knows_the_tower_by_its_weights(tower):
    other = pretrained.image_tower(None)
    assert other.weight_hash == tower.weight_hash
    other.network.visual_projection.weight += 1e-3
    assert other.weight_hash != tower.weight_hash


def test_a_tower_is_read_from_a_folder_and_a_wrong_one_is_refused(tower, tmp_path):
    tower.network.save_pretrained(tmp_path / "clip")
    found = pretrained.image_tower(tmp_path / "clip")(some_images())
    torch.testing.assert_close(found, tower(some_images()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*model.safetensors"):
        pretrained.image_tower(tmp_path / "empty")


def test_the_tower_refuses_images_of_another_shape(tower):
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\).*square"):
        tower(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: pretrained.clip_score(IMAGES, ["a", "b"], model=f), "2 texts for 3 images"),
        (lambda f: pretrained.clip_score(2 * IMAGES, "a face", model=f), "clamp it"),
        (lambda f: pretrained.clip_score(IMAGES[0], "a face", model=f), "shape"),
        (lambda f: pretrained.clip_score(IMAGES, "a face", model=f / "none"), "cannot be read"),
        (lambda f: pretrained.lpips(IMAGES, IMAGES[:1]), "not one"),
        (lambda f: pretrained.fid(IMAGES[:1], IMAGES, weights=f), "at least 2"),
        (lambda f: pretrained.fid(IMAGES, IMAGES, weights=f / "none.pth"), "is no file"),
    ],
)
def test_bad_input_is_named(folder, call, message):
    with pytest.raises(ValueError, match=message):
        call(folder)


def test_missing_weights_of_a_backbone_are_named_and_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="place alexnet-owt-7be5be79.pth in"):
        pretrained.lpips(IMAGES, IMAGES)


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith("torchmetrics.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ValueError, match=r"pip install -e .\[metrics\]"):
        pretrained.fid(IMAGES, IMAGES, weights=tmp_path / "weights.pth")


@needs_extra
def test_lpips_of_equal_images_is_zero_and_grows_with_noise(monkeypatch, tmp_path):
    import torchvision

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    weights = torchvision.models.alexnet(weights=None).state_dict()
    torch.save(weights, tmp_path / "checkpoints" / pretrained.BACKBONE)
    images = torch.nn.functional.interpolate(IMAGES, 64)
    near, far = (torch.lerp(images, images.flip(0), share) for share in (0.1, 0.5))
    assert float(pretrained.lpips(images, images).abs().max()) < 1e-6
    assert (pretrained.lpips(images, far) > pretrained.lpips(images, near))[[0, 2]].all()


@needs_extra
def test_the_name_of_the_backbones_weights_is_torchvisions():
    import torchvision

    url = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url
    assert url.endswith(f"/{pretrained.BACKBONE}")


@needs_extra
def test_fid_of_equal_sets_is_zero_and_grows_with_the_gap(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            pass

    torch.manual_seed(0)
    torch.save({}, tmp_path / "empty.pth")
    network = Untrained("inception-v3-compat", ["2048"], str(tmp_path / "empty.pth"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    dark = (IMAGES - 0.5).clamp(-1, 1)
    same, other = (
        pretrained.fid(IMAGES, b, weights=tmp_path / "weights.pth") for b in (IMAGES, dark)
    )
    assert abs(same) < 1e-3 * other
