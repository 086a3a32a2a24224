"""Two independent judges of garments, their distances, and the scores of an edit."""

import pytest
import torch

from lib.garments import attributes, judge, measures, photographs

PHOTOS = photographs.held_out()


def test_each_judge_reads_the_carried_photographs_as_its_card_says():
    for name in "ab":
        accuracy = judge.metrics(name)["accuracy"]
        read = judge.logits(PHOTOS.images, judge=name)
        right = (read["kind"].argmax(1) == PHOTOS.labels).double().mean()
        assert accuracy["kind"] > 0.89 and abs(right - accuracy["kind"]) < 0.06  # 3 errors of 256
        for head, measure in measures.TABLE.items():
            above = measure.of(PHOTOS.images) > measure.threshold
            kinds = [photographs.CLASSES[k] for k in PHOTOS.labels]
            has = torch.tensor([not measure.classes or kind in measure.classes for kind in kinds])
            agree = (read[head].argmax(1) == above)[has].double().mean()
            assert agree > 0.88 and accuracy[head] > 0.9, (name, head)


def test_the_judges_share_neither_weights_nor_photographs():
    a, b = judge.load("a"), judge.load("b")
    shapes = [{p.shape for p in network.stages.parameters()} for network in (a, b)]
    assert shapes[0] != shapes[1]
    seeds = {judge.metrics(name)["training"]["seed"] for name in "ab"}
    assert len(seeds) == 2


def test_the_distance_is_one_for_unrelated_images_and_zero_for_equal_ones():
    a, b = PHOTOS.images[:128], PHOTOS.images[128:]
    assert judge.distance(a, a).abs().max() < 1e-6
    assert torch.allclose(judge.distance(a, b), judge.distance(b, a), atol=1e-6)
    assert judge.distance(a, b).mean().item() == pytest.approx(1.0, abs=0.15)
    assert (judge.distance(a, (a + 0.05).clamp(-1, 1)) < judge.distance(a, b)).double().mean() > 0.9


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    shift = torch.tensor([1.0, 2.0, 0.0]).double()
    expected = float(shift.square().sum()) + 3 * (2 - 1) ** 2
    assert judge.frechet_of_components(x, 2 * x + shift) == pytest.approx(expected, rel=1e-9)
    assert judge.frechet(PHOTOS.images, PHOTOS.images) == pytest.approx(0, abs=1e-9)


def test_gradients_flow_to_the_images():
    images = PHOTOS.images[:2].clone().requires_grad_()
    judge.logits(images)["kind"].sum().backward()
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 28, 28), torch.full((1, 1, 32, 32), 2.0)],
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        judge.logits(images)


@pytest.mark.parametrize(
    ("head", "names"), [("hat", ("yes",)), ("kind", ()), ("shape", ("tall", "wide"))]
)
def test_log_odds_of_no_class_or_all_are_refused(head, names):
    with pytest.raises(ValueError, match="some but not all"):
        judge.log_odds(judge.logits(PHOTOS.images[:2]), head, *names)


def test_an_edit_that_does_nothing_scores_nothing_and_a_brighter_image_is_bright():
    images = PHOTOS.images[:64]
    gains, lacking, having, leaks, kept = attributes.score(images, images, "bright")
    assert (gains == 0).all() and (leaks.nan_to_num() == 0).all() and (kept == 1).all()
    assert not (lacking & having).any()
    inside = images > measures.THRESHOLD
    brighter = (images + 0.5 * inside).clamp(-1, 1)
    gains, lacking, having, _, _ = attributes.score(images, brighter, "bright")
    measure = measures.TABLE["brightness"]
    bright = measure.of(brighter) > measure.threshold
    assert gains.mean() > 0.5 and (having == bright)[lacking].double().mean() > 0.9


def test_attributes_of_faces_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="phrases of captions, mean nothing here"):
        attributes.named("smile")


def test_what_a_kind_lacks_is_not_defined():
    labels = attributes.labels(PHOTOS.images)
    shoes = labels["shoe"]
    assert not (labels["long sleeves"] & shoes).any() and shoes.double().mean() > 0.2
