"""Controls and scores of generated sets, on cases whose answer is known."""

import pytest
import torch
from torch.nn import functional as F

from lib.faces import avatars, quality


@pytest.fixture(scope="module")
def faces():
    drawn = avatars.draw(700, "held-out", seed=11)
    return avatars.to_float(avatars.render_faces(drawn, 32))


def test_blurring_twice_adds_variances():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 20] = 1.0
    twice = quality.blurred(quality.blurred(image, 1.5), 2.0)
    assert torch.allclose(twice, quality.blurred(image, 2.5), atol=2e-4)
    assert quality.blurred(image, 2.5).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_blurred_plain_image_is_itself():
    plain = torch.full((2, 3, 8, 8), 0.3)
    assert torch.allclose(quality.blurred(plain, 1.0), plain, atol=1e-6)


def test_noise_has_its_deviation_and_stays_in_range():
    grey = torch.zeros(4, 3, 32, 32)
    assert quality.noisy(grey, 0.2).std().item() == pytest.approx(0.2, rel=0.02)
    assert quality.noisy(grey + 1, 0.2).max() == 1.0
    assert torch.equal(quality.noisy(grey, 0.2, seed=3), quality.noisy(grey, 0.2, seed=3))


def test_a_splice_takes_the_left_of_one_and_the_right_of_the_next():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    halves = quality.spliced(images)
    assert halves[:, 0, 0, 0].tolist() == [0, 1, 2] and halves[:, 0, 0, -1].tolist() == [1, 2, 0]


def test_saturated_images_are_told_apart():
    means = torch.tensor([0.0, 0.74, 0.76, -0.76])
    assert quality.saturated(means.view(4, 1, 1, 1).expand(4, 3, 8, 8)).tolist() == [
        False, False, True, True,
    ]  # fmt: skip


def test_completeness_passes_new_faces_and_fails_spoiled_ones(faces):
    score = quality.completeness(faces[:500], components=200)
    bound = torch.quantile(score(faces[500:600]), 0.05)
    share = lambda images: (score(images) > bound).double().mean().item()  # noqa: E731
    new = faces[600:]
    assert share(new) > 0.8
    assert share(quality.noisy(new, 0.2)) < 0.1
    assert share(quality.spliced(new)) < 0.3
    assert share(quality.blurred(new, 1.0)) < 0.3


def test_completeness_needs_enough_faces(faces):
    with pytest.raises(ValueError, match="at least 800"):
        quality.completeness(faces[:500])


def test_nearest_distance_is_that_of_the_closest():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(5000, 3, 4, 4, generator=generator)
    images = reference[[17, 4800]] + 0.1
    assert torch.allclose(quality.nearest_distance(images, reference), torch.tensor(0.1), atol=1e-4)
    brute = (images[:, None] - reference[None, :300]).square().mean((2, 3, 4)).sqrt().amin(1)
    assert torch.allclose(quality.nearest_distance(images, reference[:300]), brute, atol=1e-4)


def test_nearest_distance_refuses_other_sizes(faces):
    with pytest.raises(ValueError, match="resize"):
        quality.nearest_distance(faces[:2], F.avg_pool2d(faces[:2], 2))


def test_chroma_grows_with_colour_and_not_with_contrast():
    faces = avatars.to_float(avatars.load("held-out", 8).images)
    grey = faces.mean(1, keepdim=True).expand_as(faces)
    own = quality.chroma(faces)
    assert quality.chroma(grey).abs().max() < 1e-6
    assert torch.allclose(quality.chroma(grey + 0.5 * (faces - grey)), 0.5 * own, atol=1e-6)
    stretched = (faces + 0.4 * grey).clamp(-1, 1)
    assert (quality.chroma(stretched) < own + 1e-6).all()
    assert ((stretched.abs() > 0.95).sum() > (faces.abs() > 0.95).sum()).all()  # the old count


def test_chroma_of_chosen_pixels():
    image = torch.zeros(1, 3, 2, 2)
    image[:, 0, 0, 0] = 1.0  # red: rg = 1, yb = 1/2
    where = torch.tensor([[[True, False], [False, True]]])
    assert torch.allclose(quality.chroma(image, where), torch.tensor([1.25**0.5 / 2]).double())
    assert quality.chroma(image, ~where).item() == 0
