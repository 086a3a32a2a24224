import dataclasses

import numpy as np
import pytest
import torch

from lib.faces import avatars, captions, judge
from lib.training import scorers


def test_undefined_labels_carry_no_loss_and_no_gradient():
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.tensor([0, -1, 2, -1, 1])
    loss = scorers.masked_cross_entropy(z, truth)
    expected = -z.log_softmax(1)[[0, 2, 4], [0, 2, 1]].mean()
    assert torch.allclose(loss, expected)
    loss.backward()
    assert (z.grad[[1, 3]] == 0).all() and (z.grad[[0, 2, 4]] != 0).all()
    assert scorers.masked_cross_entropy(z, torch.full((5,), -1)) == 0


def test_spoiling_stays_in_range_and_follows_its_generator():
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    once, again = (scorers.spoil(images, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(once, again) and once.abs().max() <= 1.0
    assert not torch.allclose(once, images, atol=0.01)
    assert (once - images).abs().mean((1, 2, 3)).min() > 0


def test_coarsening_takes_half_of_the_images_through_32_px():
    images = torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    coarse = scorers.coarsen(images, torch.Generator().manual_seed(4))
    same = (coarse == images).flatten(1).all(1)
    assert 70 < same.sum() < 130
    blocks = judge.resize(images[~same], 32)
    assert torch.allclose(coarse[~same], judge.resize(blocks, 64))


def test_the_deviation_of_log_odds_is_that_of_the_judges_log_odds():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
    names = list(avatars.CLASSES["mouth"])
    for name, deviation in scorers._deviations(z, names).items():
        p = z.double().softmax(1)[:, names.index(name)]
        assert deviation == pytest.approx((p / (1 - p)).log().std().item(), abs=1e-3)


class Oracle:
    """A CLIP whose embeddings are one-hot words, and images that are embedded captions."""

    def get_text_features(self, input_ids, attention_mask):
        table = torch.zeros(len(input_ids), len(captions.tokenizer()))
        table.scatter_(1, input_ids, 1.0)
        return type("Output", (), {"pooler_output": table})


def test_zero_shot_and_retrieval_are_perfect_for_an_oracle_and_random_for_noise():
    words, labels = captions.tokenizer(), avatars.labels(avatars.draw(400).parts)
    images = scorers._embed_texts(Oracle(), words, captions.captions(labels))
    # A bag of words can tell these phrases apart: equal in length, no word shared with others.
    right = scorers._zero_shot(Oracle(), words, images, "hair_length", labels["hair_length"])
    assert right == 1.0
    recall = scorers._retrieval(Oracle(), words, images, labels)
    assert recall["text_to_image_at_1"] == recall["image_to_text_at_1"] == 1.0
    noise = torch.nn.functional.normalize(torch.randn(images.shape), dim=1)
    wrong = scorers._zero_shot(Oracle(), words, noise, "mouth", labels["mouth"])
    assert abs(wrong - 1 / 3) < 0.12
    assert scorers._retrieval(Oracle(), words, noise, labels)["text_to_image_at_1"] < 0.05


def test_the_true_one_of_the_shortest_captions_says_what_the_full_caption_says():
    labels = avatars.labels(avatars.draw(300).parts)
    full = captions.captions(labels)
    for attribute in scorers.ATTRIBUTES:
        texts = [
            text.removeprefix("a face").strip() for text in scorers.options(attribute, "a face")
        ]
        for row, option in enumerate(scorers.option_of(attribute, labels[attribute])):
            assert (option == -1) == (labels[attribute][row] == -1)
            said = [f" {text} " in f" {full[row]} " for text in texts]
            expected = [i == option and bool(text) for i, text in enumerate(texts)]
            assert [a and bool(t) for a, t in zip(said, texts, strict=True)] == expected


def test_the_contrastive_loss_is_that_of_its_parts():
    sizes = [len(scorers.options(attribute, "a face")) for attribute in scorers.ATTRIBUTES]
    scores = torch.randn(3, 3 + sum(sizes), generator=torch.Generator().manual_seed(6))
    meanings = torch.zeros(3, len(sizes), dtype=torch.long)
    meanings[1, 0] = -1

    def network(**_):
        return type("Output", (), {"logits_per_image": scores})

    batch = (torch.zeros(3, 3, 64, 64), torch.zeros(3, 24), None, meanings)
    loss = scorers._clip_loss(network, batch, torch.Generator().manual_seed(7))
    square = scores[:, :3]
    expected = -(square.log_softmax(1).diagonal() + square.log_softmax(0).diagonal()).mean() / 2
    start = 3
    for column, size in enumerate(sizes):
        rows = [row for row in range(3) if meanings[row, column] >= 0]
        expected -= scores[rows, start : start + size].log_softmax(1)[:, 0].mean()
        start += size
    assert torch.allclose(loss, expected, atol=1e-5)


def test_an_attribute_below_the_gate_is_dropped_from_the_saved_judge(tmp_path):
    network = judge.Judge("a", scorers.ATTRIBUTES).eval()
    folder = tmp_path / "judge-a"
    folder.mkdir()
    metrics = {"dropped": ["mouth"], "training": {"steps": 1, "batch": 1}}
    scorers._save_judge(network, folder, metrics)
    loaded = judge.load("a", models=tmp_path)
    images = torch.zeros(2, 3, 32, 32)
    expected, given = network.half().float()(images), loaded(images)
    assert set(given) == set(expected) - {"mouth"}
    for name, z in given.items():
        assert torch.allclose(z, expected[name], atol=1e-5)


def test_warm_start_does_not_disturb_the_judge_in_use():
    before = judge.load("a")
    started = scorers.judge_task("a").load(judge.MODELS / "judge-a")
    assert started.training and all(p.requires_grad for p in started.parameters())
    assert not before.training and not any(p.requires_grad for p in before.parameters())


def test_every_clip_batch_pairs_faces_with_true_captions(monkeypatch, tmp_path):
    load = avatars.load
    monkeypatch.setattr(avatars, "load", lambda split, **k: load(split, 20, cache=tmp_path, **k))
    count, fetch = scorers._clip_data()
    images, ids, mask, meanings = fetch(torch.tensor([3, 7]), torch.Generator().manual_seed(0))
    assert count == 20 and images.shape == (2, 3, 64, 64) and mask.shape == ids.shape
    labels = avatars.labels(avatars.draw(20).parts)
    texts = captions.tokenizer().batch_decode(ids, skip_special_tokens=True)
    for row, text in zip((3, 7), texts[:2], strict=True):
        for phrase, (attribute, classes) in captions.MEANINGS.items():
            if f"{phrase} " in f"{text} ":
                assert avatars.CLASSES[attribute][labels[attribute][row]] in classes
    shortest = torch.tensor([scorers.option_of(a, labels[a])[7] for a in scorers.ATTRIBUTES])
    assert torch.equal(meanings[1], shortest)
    assert texts[2:] in [
        [text for a in scorers.ATTRIBUTES for text in scorers.options(a, subject)]
        for subject in captions.SUBJECTS
    ]
    pixels = load("train", 20, size=64, cache=tmp_path).images[3]
    assert np.allclose(images[0].numpy(), pixels / 127.5 - 1, atol=1e-6)


def test_tasks_name_their_own_seeds():
    tasks = [make() for make in scorers.TASKS.values()]
    assert [dataclasses.asdict(task)["name"] for task in tasks] == list(scorers.TASKS)
    assert len({task.seed for task in tasks}) == len(tasks)
