import hashlib
import json

import numpy as np
import pytest
import torch

from lib.faces import avatars, captions, judge

COUNT = 320


@pytest.fixture(scope="module")
def faces():
    """Held-out label sets in a stream that no network was trained or measured on, at 32 px."""
    drawn = avatars.draw(COUNT, "held-out", seed=99)
    images = avatars.to_float(avatars.render_faces(drawn, 32, processes=1))
    labels = {k: torch.from_numpy(v).long() for k, v in avatars.labels(drawn.parts).items()}
    return images, labels


def blurred(images, times):
    for _ in range(times):
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = torch.nn.functional.avg_pool2d(padded, 3, 1)
    return images


def test_resizing_averages_areas_down_and_keeps_planes_up():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert torch.allclose(judge.resize(images, 4), blocks, atol=1e-6)
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)
    inner = judge.resize(ramp, 8)[..., 1:-1]
    assert torch.allclose(inner, (torch.arange(8.0)[1:-1] / 2 - 0.25).expand(1, 3, 8, 6))
    assert judge.resize(images, 8) is images


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("size", [32, 64])
def test_judges_read_fresh_faces(faces, name, size):
    images, labels = faces
    logits = judge.logits(judge.resize(images, size), judge=name)
    assert set(logits) <= set(captions.PHRASES) and len(logits) >= 6
    for attribute, z in logits.items():
        assert z.shape == (COUNT, len(avatars.CLASSES[attribute]))
        assert judge.classes(judge=name)[attribute] == list(avatars.CLASSES[attribute])
        defined = labels[attribute] >= 0
        right = (z.argmax(1) == labels[attribute])[defined].double().mean()
        assert right > 0.95, attribute


def test_attributes_are_the_softmax_of_the_logits(faces):
    images = faces[0][:8]
    for attribute, p in judge.attributes(images).items():
        z = judge.logits(images)[attribute].double().exp()
        assert torch.allclose(p.double(), z / z.sum(1, keepdim=True), atol=1e-5)


def test_log_odds_are_the_log_of_the_probability_ratio(faces):
    images = faces[0][:8]
    logits, p = judge.logits(images), judge.attributes(images)["facial_hair"].double()
    names = judge.classes()["facial_hair"]
    moustache = p[:, names.index("walrus")] + p[:, names.index("pyramid")]
    rest = p[:, names.index("none")] + p[:, names.index("goatee")]
    odds = judge.log_odds(logits, "facial_hair", "walrus", "pyramid")
    sure = (moustache > 1e-6) & (rest > 1e-6)
    assert torch.allclose(odds.double()[sure], (moustache / rest).log()[sure], atol=1e-2)
    opposite = judge.log_odds(logits, "facial_hair", "none", "goatee")
    assert torch.allclose(odds, -opposite, atol=1e-5)


def test_the_judges_differ_in_architecture_weights_and_data(faces):
    states = [judge.load(name).state_dict() for name in ("a", "b")]
    shapes = [{tuple(value.shape) for value in state.values()} for state in states]
    assert shapes[0] != shapes[1]
    digests = [
        {hashlib.sha256(v.numpy().tobytes()).hexdigest() for v in s.values() if v.numel() > 64}
        for s in (*states, judge.clip()[0].state_dict())
    ]
    assert not digests[0] & digests[1] and not (digests[0] | digests[1]) & digests[2]
    seeds = [judge.metrics(name)["data_seed"] for name in ("a", "b")]
    clip = json.loads((judge.MODELS / "clip" / "metrics.json").read_text())
    assert len({*seeds, clip["data_seed"]}) == 3


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_judged_passed_the_gate(name):
    metrics, judged = judge.metrics(name), set(judge.classes(judge=name))
    for accuracy in metrics["accuracy"].values():
        assert all(accuracy[attribute] >= 0.95 for attribute in judged)
    assert judged | set(metrics["dropped"]) == set(captions.PHRASES)
    assert not judged & set(metrics["dropped"])


def test_the_distance_is_zero_on_equal_images_and_symmetric(faces):
    a, b = faces[0][:40], faces[0][40:80]
    assert judge.distance(a, a).abs().max() < 1e-10
    assert torch.allclose(judge.distance(a, b), judge.distance(b, a), atol=1e-6)
    assert (judge.distance(a, b) > 0).all()


@pytest.mark.parametrize("size", [32, 64])
def test_the_distance_of_unrelated_faces_is_one_on_average(faces, size):
    images = judge.resize(faces[0], size)
    d = judge.distance(images[: COUNT // 2], images[COUNT // 2 :])
    assert abs(d.mean().item() - 1.0) < 0.1


def test_the_distance_grows_with_blur_and_with_noise(faces):
    images = faces[0][:60]
    for spoil in (
        lambda m: blurred(images, m),
        lambda m: (images + 0.05 * m * torch.randn_like(images)).clamp(-1, 1),
    ):
        torch.manual_seed(0)
        d = [judge.distance(images, spoil(m)).mean().item() for m in (1, 2, 4)]
        assert 0 < d[0] < d[1] < d[2]


def test_the_distance_of_a_pair_does_not_depend_on_the_batch(faces):
    a, b = faces[0][:8], faces[0][8:16]
    together = judge.distance(a, b)
    alone = torch.cat([judge.distance(a[i : i + 1], b[i : i + 1]) for i in range(8)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_frechet_is_zero_on_equal_sets_and_symmetric(faces):
    a, b = faces[0][:160], faces[0][160:]
    assert abs(judge.frechet(a, a)) < 1e-9
    assert abs(judge.frechet(a, a.flip(0))) < 1e-9
    assert judge.frechet(a, b) == pytest.approx(judge.frechet(b, a), rel=1e-9)


def test_frechet_grows_with_blur_beyond_its_floor(faces):
    a, b = faces[0][:160], faces[0][160:]
    values = [judge.frechet(a, blurred(b, m)) for m in (0, 2, 4)]
    assert 0 < values[0] < values[1] < values[2]


def test_frechet_agrees_with_the_matrix_square_root(faces):
    from scipy.linalg import sqrtm

    a, b = faces[0][:160], blurred(faces[0][160:], 2)
    network = judge.load("b")
    components = network.components.double()
    x, y = ((judge.features(z).double() @ components.T).numpy() for z in (a, b))
    covariances = [np.cov(z, rowvar=False) for z in (x, y)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert judge.frechet(a, b) == pytest.approx(expected / network.total_variance.item(), rel=1e-4)


def test_components_are_orthonormal_and_hold_most_of_the_variance(faces):
    network = judge.load("b")
    basis = network.components.double()
    assert basis.shape == (64, 128)
    assert torch.allclose(basis @ basis.T, torch.eye(64, dtype=torch.float64), atol=1e-5)
    pooled = judge.features(faces[0]).double()
    centred = pooled - pooled.mean(0)
    share = (centred @ basis.T).square().sum() / centred.square().sum()
    assert share > 0.95
    total = centred.square().sum() / (COUNT - 1)
    assert total.item() == pytest.approx(network.total_variance.item(), rel=0.15)


def test_clip_prefers_the_true_phrase(faces):
    images, labels = faces
    texts = ["a face without glasses", "a face with glasses", "a face with sunglasses"]
    guess = judge.clip_similarity(images, texts).argmax(1)
    assert (guess == labels["eyewear"]).double().mean() > 0.9
    alone = judge.clip_similarity(images, texts[1])
    assert torch.allclose(alone, judge.clip_similarity(images, texts)[:, 1], atol=1e-6)


def test_clip_similarity_is_a_cosine(faces):
    images = faces[0][:4]
    similarity = judge.clip_similarity(images, captions.SUBJECTS[0])
    assert similarity.shape == (4,) and similarity.abs().max() <= 1.0
    assert torch.allclose(judge.embed_images(images).norm(dim=1), torch.ones(4), atol=1e-5)


def test_directional_similarity_follows_the_edit():
    drawn = avatars.draw(60, "held-out", seed=98)
    column, eyes = list(avatars.PARTS).index("eyes"), list(avatars.PARTS["eyes"])
    versions = {}
    for name in ("open", "glasses"):
        parts = drawn.parts.copy()
        parts[:, column] = eyes.index(name)
        faces = avatars.Faces(parts, drawn.jitter)
        versions[name] = avatars.to_float(avatars.render_faces(faces, 32, processes=1))
    off, on = "a face without glasses", "a face with glasses"
    right = judge.directional_similarity(versions["open"], versions["glasses"], off, on)
    wrong = judge.directional_similarity(versions["glasses"], versions["open"], off, on)
    assert torch.allclose(right, -wrong, atol=1e-5)
    other = judge.directional_similarity(
        versions["open"], versions["glasses"], "a face with dark skin", "a face with light skin"
    )
    assert right.mean() > 0.3 and right.mean() > 3 * other.mean().abs()
    still = judge.directional_similarity(versions["open"], versions["open"], off, on)
    assert still.abs().max() < 1e-3


@pytest.mark.parametrize("score", ["logits", "distance", "clip"])
def test_gradients_reach_the_images(faces, score):
    images = faces[0][:2].clone().requires_grad_(True)
    value = {
        "logits": lambda: judge.log_odds(judge.logits(images), "hat", "yes"),
        "distance": lambda: judge.distance(images, faces[0][2:4]),
        "clip": lambda: judge.clip_similarity(images, "a face with a hat"),
    }[score]()
    value.sum().backward()
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("score", ["features", "clip"])
def test_forward_mode_derivatives_match_differences(faces, score):
    from torch.func import jvp

    network = {
        "features": lambda x: judge.load("b").pooled(x),
        "clip": lambda x: judge.embed_images(x),
    }[score]
    x = faces[0][:1] * 0.5
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    _, derivative = jvp(network, (x,), (v,))
    h = 1e-2
    difference = (network(x + h * v) - network(x - h * v)) / (2 * h)
    cosine = torch.nn.functional.cosine_similarity(derivative, difference)
    assert cosine.item() > 0.98


GOOD = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge.logits(GOOD + 1.5), "images reaches 1.5"),
        (lambda: judge.logits(GOOD * torch.nan), "images reaches nan"),
        (lambda: judge.logits(GOOD[:, :1]), r"shape \(2, 1, 32, 32\)"),
        (lambda: judge.logits(GOOD[0]), r"shape \(3, 32, 32\)"),
        (lambda: judge.logits(GOOD.to(torch.uint8)), "type torch.uint8"),
        (lambda: judge.logits(GOOD, judge="c"), "judge = 'c'"),
        (lambda: judge.distance(GOOD, GOOD[:1]), "not one"),
        (lambda: judge.distance(GOOD, GOOD - 2), "b reaches 2"),
        (lambda: judge.frechet(GOOD[:1], GOOD[:1]), "1 and 1 images"),
        (lambda: judge.frechet(GOOD, GOOD[:1]), "2 and 1 images"),
        (lambda: judge.clip_similarity(GOOD, "a dog"), "word 'dog' is unknown"),
        (lambda: judge.clip_similarity(GOOD, "a " * 30), "30 words"),
        (lambda: judge.directional_similarity(GOOD, GOOD, "a face", "a face"), "no direction"),
        (lambda: judge.log_odds(judge.logits(GOOD), "nose", "big"), "attribute = 'nose'"),
        (lambda: judge.log_odds(judge.logits(GOOD), "hat", "no", "yes"), "some but not all"),
        (lambda: judge.log_odds(judge.logits(GOOD), "hat", "maybe"), "some but not all"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_and_truncated_weights_say_how_to_mend_it(tmp_path):
    with pytest.raises(ValueError, match="python -m lib.training.train judge-a"):
        judge.load("a", models=tmp_path)
    folder = tmp_path / "judge-a"
    folder.mkdir()
    source = judge.MODELS / "judge-a"
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = (source / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="cannot be read from judge-a"):
        judge.load("a", models=tmp_path)
    with pytest.raises(ValueError, match="python -m lib.training.train clip"):
        judge.clip(models=tmp_path)


@pytest.mark.parametrize("name", ["judge-a", "judge-b", "clip"])
def test_a_model_folder_is_small_safe_and_documented(name):
    folder = judge.MODELS / name
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
    assert sum(files.values()) < (1.6e6 if name.startswith("judge") else 6e6)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert avatars.attribution() in card and avatars.recipe() in card
