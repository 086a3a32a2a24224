import numpy as np
import pytest
import torch

from lib.faces import avatars, pairs


@pytest.mark.parametrize("attribute", pairs.ATTRIBUTES)
def test_the_two_faces_differ_in_one_part_alone(attribute, monkeypatch):
    drawn = []

    def remember(faces, size, processes):
        drawn.append(faces)
        return np.zeros((len(faces.parts), 3, size, size), np.uint8)

    monkeypatch.setattr(avatars, "render_faces", remember)
    pairs.render(attribute, 20, seed=3)
    (first, second), part = drawn, pairs.ATTRIBUTES[attribute].part
    other = [i for i, name in enumerate(avatars.PARTS) if name != part]
    assert np.array_equal(first.parts[:, other], second.parts[:, other])
    assert np.array_equal(first.jitter, second.jitter)
    for faces, variant in ((first, "without"), (second, "present")):
        index = list(avatars.PARTS[part]).index(getattr(pairs.ATTRIBUTES[attribute], variant))
        assert (faces.parts[:, list(avatars.PARTS).index(part)] == index).all()


@pytest.mark.parametrize("attribute", pairs.ATTRIBUTES)
def test_every_face_shows_the_difference(attribute):
    without, present = pairs.render(attribute, 3, seed=1)
    assert without.shape == (3, 3, 32, 32) and without.abs().max() <= 1
    changed = ((present - without).abs().amax(1) > 0.1).sum((1, 2))
    assert bool((changed >= 4).all()) and bool((changed < 700).all())


def test_a_face_depends_on_its_number_alone_and_not_on_the_attribute():
    few, many = pairs.render("glasses", 2, seed=5), pairs.render("glasses", 4, seed=5)
    assert torch.equal(few.present, many.present[:2])
    assert not torch.equal(few.present, pairs.render("glasses", 2, seed=6).present)
    above = pairs.render("walrus beard", 2, seed=5).without[..., :6, :3]  # a corner of background
    assert torch.equal(above, few.without[..., :6, :3])
    blond = pairs.render("blond hair", 3, seed=5)
    assert torch.equal(pairs.render("blond hair", 1, seed=5).present, blond.present[:1])


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        pairs.render("nose", 3)
    with pytest.raises(ValueError, match="n = 0"):
        pairs.render("glasses", 0)


def test_a_task_is_done_by_its_own_target_and_by_nothing_else():
    for task in ("with glasses", "frowning", "hat"):
        name, sign, *_ = pairs.TASKS[task]
        source, target = pairs.render(name, 6, seed=3)[::sign]
        done, idle = pairs.judged(task, target, source), pairs.judged(task, source, source)
        assert done["success"].mean() == 1 and idle["success"].mean() == 0, task
        assert (idle["off"] == 0).all() and (idle["distance"] < 1e-6).all()
        assert (done["clip"] > idle["clip"]).mean() > 0.5 and (done["distance"] > 0).all()


def test_images_show_what_was_rendered():
    for name in pairs.ATTRIBUTES:
        without, present = pairs.render(name, 6, seed=5)
        assert pairs.shows(present, name).all() and not pairs.shows(without, name).any(), name


def test_an_unknown_task_is_refused():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="task 'tie': choose one of"):
        pairs.judged("tie", image, image)
