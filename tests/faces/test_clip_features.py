"""The published CLIP's image tower, on random weights: preprocessing, unit length, refusals."""

import pytest
import torch

from lib.faces import clip_features


def some_images(n=3, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def embed():
    return clip_features.load(None)


def test_embeddings_have_unit_length_and_belong_to_the_row(embed):
    images = some_images()
    found = embed(images)
    assert found.shape == (3, 32)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embed(images[1:2]), found[1:2], rtol=0, atol=1e-5)
    assert float((found[0] - found[1]).norm()) > 1e-3


def test_the_network_sees_what_the_librarys_own_processor_makes(embed, tmp_path):
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    network = clip_features._network(None, "")
    array = ((some_images(1, 224)[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    pixels = CLIPImageProcessorPil()(Image.fromarray(array.numpy()), return_tensors="pt")
    expected = network.eval()(**pixels).image_embeds
    found = embed(array.permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(found, expected / expected.norm(), rtol=0, atol=1e-4)


def test_a_cache_knows_it_by_its_weights(embed):
    assert clip_features.load(None).weight_hash == embed.weight_hash
    other = clip_features.load(None)
    other.network.visual_projection.weight += 1e-3
    assert other.weight_hash != embed.weight_hash


def test_a_folder_is_read_and_a_wrong_one_is_refused(tmp_path):
    clip_features._network(None, "").save_pretrained(tmp_path / "clip")
    found = clip_features.load(tmp_path / "clip")(some_images())
    torch.testing.assert_close(found, clip_features.load(None)(some_images()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty.*model.safetensors"):
        clip_features.load(tmp_path / "empty")


def test_images_of_another_shape_are_refused(embed):
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\).*square"):
        embed(torch.zeros(2, 1, 8, 8))
