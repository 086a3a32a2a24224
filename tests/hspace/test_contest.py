"""Laws of the comparison at equal gain."""

import math

import pytest
import torch

from lib.faces import attributes, avatars
from lib.hspace import contest


@pytest.fixture(scope="module")
def faces():
    """Faces without glasses, and the same with them."""
    drawn, parts = avatars.draw(8, "held-out", seed=11), {}
    for look in ("open", "glasses"):
        own = drawn.parts.copy()
        own[:, list(avatars.PARTS).index("eyes")] = list(avatars.PARTS["eyes"]).index(look)
        rendered = avatars.render_faces(avatars.Faces(own, drawn.jitter), 32, processes=1)
        parts[look] = avatars.to_float(rendered)
    return parts["open"], parts["glasses"]


def fade(faces):
    """An edit whose strength 1 is the face with glasses."""
    return lambda c: torch.lerp(faces[0], faces[1], c)


def test_a_sweep_stops_where_the_gain_is_reached(faces):
    asked = []

    def way(c):
        asked.append(c)
        return contest.Timed(fade(faces)(c), 4.0)

    trial = contest.sweep(faces[0], way, "glasses", (0.0, 0.5, 1.0, 2.0), gain=1.0)
    assert asked == list(trial.strengths) and asked[-1] < 2.0
    assert trial.scores[0].gain == 0 and trial.top.value >= 1.0
    assert trial.seconds == pytest.approx(4.0 / 8)
    never = contest.sweep(faces[0], lambda c: way(0.0), "glasses", (0.5, 1.0), gain=1.0)
    assert never.strengths == (0.5, 1.0) and never.top.value == 0
    assert attributes.matched(*never[:3], 1.0) is None


def test_an_image_that_is_not_finite_is_scored_as_grey(faces):
    broken = contest.Timed(torch.full_like(faces[0], math.nan), 1.0)
    trial = contest.sweep(faces[0], lambda c: broken, "glasses", (1.0,), gain=1.0)
    assert float(trial.images[0].abs().max()) == 0 and math.isfinite(trial.scores[0].gain)


def test_matched_is_the_outcome_at_the_gain_with_its_spread(faces):
    strengths = (0.25, 0.5, 0.75, 1.0)
    images = [fade(faces)(c) for c in strengths]
    scores = [attributes.score(faces[0], image, "glasses") for image in images]
    distances = [attributes.distance(faces[0], image) for image in images]
    gain = 0.5 * (scores[2].gain + scores[3].gain)
    found = attributes.matched(strengths, scores, distances, gain)
    assert found.strength == pytest.approx(0.875)
    for name in ("off_target", "unchanged", "distance"):
        own = getattr(found, name)
        ends = [float(d.mean()) for d in distances[2:]]
        ends = ends if name == "distance" else [getattr(s, name) for s in scores[2:]]
        assert own.value == pytest.approx(sum(ends) / 2, abs=1e-6)
        assert own.low <= own.value <= own.high and own.error >= 0


def test_two_sweeps_of_the_same_images_are_compared_face_by_face(faces):
    strengths = (0.25, 0.5, 0.75, 1.0)
    scores = [attributes.score(faces[0], fade(faces)(c), "glasses") for c in strengths]
    gain = 0.5 * (scores[2].gain + scores[3].gain)
    assert attributes.matched_gap(scores, scores, gain)[:2] == (0.0, 0.0)
    leaky = [s._replace(leaks=s.leaks + 1.0) for s in scores]
    gap = attributes.matched_gap(leaky, scores, gain)
    own = [attributes.matched(strengths, s, [torch.zeros(8)] * 4, gain) for s in (leaky, scores)]
    assert gap.value == pytest.approx(own[0].off_target.value - own[1].off_target.value)
    assert math.isnan(attributes.matched_gap(scores[:1], scores, 10.0).value)


def test_gain_at_a_distance_lies_between_the_levels(faces):
    way = fade(faces)
    full = float(attributes.distance(faces[0], faces[1]).mean())
    gains, far = contest.gain_at_distance(faces[0], way, "glasses", (1.0, 5.0), full / 2)
    own = attributes.score(faces[0], faces[1], "glasses").gains
    torch.testing.assert_close(gains, own / 2)
    assert far == full / 2
    gains, far = contest.gain_at_distance(faces[0], way, "glasses", (1.0,), 2 * full)
    torch.testing.assert_close(gains, own)
    assert far == pytest.approx(full)


def test_strengths_meet_their_targets_and_doubling_ends():
    calls = []

    def reach(c):
        calls.append(c)
        return 0.3 * c

    assert contest.strengths_at(reach, [0.0, 0.1, 0.9]) == pytest.approx([0.0, 1 / 3, 3.0])
    assert calls == [0.5, 1.0, 2.0, 4.0]  # no further than needed
    assert contest.strengths_at(lambda c: min(c, 3.0), [1.5, 9.0], first=1.0) == [1.5, 64.0]
