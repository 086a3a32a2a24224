"""Scores of edits, against faces that were drawn with and without the attribute."""

import math

import numpy as np
import pytest
import torch

from lib.faces import attributes, avatars

NAMES = list(avatars.PARTS)


def drawn(parts, jitter):
    return avatars.to_float(avatars.render_faces(avatars.Faces(parts, jitter), 32, processes=1))


@pytest.fixture(scope="module")
def faces():
    return avatars.draw(24, "held-out", seed=11)


def with_part(faces, part, variant, keep=slice(None)):
    parts = faces.parts.copy()
    parts[keep, NAMES.index(part)] = list(avatars.PARTS[part]).index(variant)
    return parts


def test_labels_are_those_that_the_faces_were_drawn_with(faces):
    own, found = avatars.labels(faces.parts), attributes.labels(drawn(*faces))
    for name, attribute in attributes.ATTRIBUTES.items():
        indices = [avatars.CLASSES[attribute.head].index(c) for c in attribute.classes]
        assert found[name].tolist() == np.isin(own[attribute.head], indices).tolist(), name


def test_drawing_glasses_on_scores_as_a_perfect_edit(faces):
    without = with_part(faces, "eyes", "open")
    plain, edited = (
        drawn(without, faces.jitter),
        drawn(with_part(faces, "eyes", "glasses"), faces.jitter),
    )
    scores = attributes.score(plain, edited, "glasses")
    assert bool(scores.lacking.all()) and scores.flip_rate == 1.0
    assert scores.unchanged == 1.0
    assert scores.gain > 1.5 and scores.off_target < 0.15 * scores.gain
    back = attributes.score(edited, plain, "glasses")
    assert back.gain == pytest.approx(-scores.gain, rel=1e-5) and not bool(back.lacking.any())
    assert math.isnan(back.flip_rate)


def test_a_hat_is_not_blamed_for_the_hair_it_hides(faces):
    bare = with_part(faces, "hair", "long")
    bare[:, NAMES.index("hair_colour")] = 0
    hidden = with_part(faces, "hair", "beanie")
    hidden[:, NAMES.index("hair_colour")] = avatars.UNDEFINED
    scores = attributes.score(drawn(bare, faces.jitter), drawn(hidden, faces.jitter), "hat")
    assert scores.flip_rate == 1.0 and scores.unchanged > 0.97
    hair = attributes.score(drawn(hidden, faces.jitter), drawn(bare, faces.jitter), "long hair")
    assert not bool(hair.lacking.any())  # under a hat nobody can see that it is missing


def test_a_face_against_itself_scores_nothing(faces):
    images = drawn(*faces)
    scores = attributes.score(images, images, "smile")
    assert scores.gain == 0 and scores.off_target == 0 and scores.unchanged == 1
    assert float(attributes.distance(images, images).abs().max()) < 1e-6


def test_interval_of_a_mean_is_that_of_theory():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = attributes.interval(lambda v: float(v.mean()), values)
    assert found.value == float(values.mean())
    assert found.error == pytest.approx(float(values.std()) / 20, rel=0.1)
    assert found.low < found.value < found.high
    pairs = attributes.interval(lambda a, b: float((a - b).mean()), values, values + 1)
    assert pairs.value == pytest.approx(-1) and pairs.error < 1e-12  # the same rows of both


def test_costs_at_a_gain_lie_on_the_line_between_their_neighbours():
    flat = lambda gain, leak, kept: attributes.Scores(  # noqa: E731
        torch.full((4,), gain),
        *[torch.ones(4).bool()] * 2,
        torch.full((4, 2), leak),
        torch.full((4,), kept),
    )
    swept = [flat(0.5, 0.1, 0.9), flat(1.5, 0.3, 0.7)]
    run = lambda gain: attributes.matched(  # noqa: E731
        (1, 2), swept, [torch.full((4,), d) for d in (0.2, 0.6)], gain, draws=5
    )
    values = lambda found: [found.strength, *(part.value for part in found[1:])]  # noqa: E731
    assert values(run(1.0)) == pytest.approx([1.5, 0.2, 0.8, 0.4])
    assert values(run(0.25)) == pytest.approx([0.5, 0.05, 0.95, 0.1])
    assert run(1.6) is None
    with pytest.raises(ValueError, match="gain = 0"):
        run(0)


def test_bad_input_is_refused(faces):
    images = drawn(*faces)
    with pytest.raises(ValueError, match="monocle"):
        attributes.score(images, images, "monocle")
    with pytest.raises(ValueError, match="one edited image for each"):
        attributes.score(images, images[:3], "hat")


def test_total_variation_leaves_the_edited_attribute_out():
    before = {"hat": np.array([[1.0, 0.0]] * 2), "skin": np.array([[0.2, 0.8]] * 2)}
    after = {"hat": np.array([[0.0, 1.0]] * 2), "skin": np.array([[0.2, 0.8], [0.7, 0.3]])}
    assert np.allclose(attributes.total_variation(before, after, "hat"), [0, 0.5])
    assert np.allclose(attributes.total_variation(before, after, "skin"), [1, 1])
    with pytest.raises(ValueError, match="'nose'"):
        attributes.total_variation(before, after, "nose")
