"""The classifier that has seen noise, and its gradient."""

import torch

from lib.faces import avatars
from lib.training import noisy


def test_gradient_of_the_classifier_is_its_finite_difference():
    alphas = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    network = noisy.train_classifier(alphas, updates=2, batch=8)
    gradient = noisy.ClassGradient(network, alphas, "glasses")
    x, v = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    level = (1 - alphas[400]).sqrt().float().expand(2)

    def value(x):
        z = network(x, level)["eyewear"].log_softmax(1)
        return (z[:, 1:].logsumexp(1)).double()

    numeric = (value(x + 0.01 * v) - value(x - 0.01 * v)) / 0.02
    exact = (gradient(x, 400) * v).sum((1, 2, 3)).double()
    torch.testing.assert_close(exact, numeric, rtol=0.05, atol=1e-4)


def test_classifier_learns_from_noisy_faces():
    alphas = torch.full((10,), 0.9, dtype=torch.float64)
    network = noisy.train_classifier(alphas, updates=60, batch=32)
    faces = avatars.load("held-out", 200, pink=False)
    logits = network(avatars.to_float(faces.images), torch.zeros(len(faces.images)))
    right = logits["hat"].argmax(1) == torch.from_numpy(faces.labels["hat"]).long()
    assert float(right.float().mean()) > 0.85  # always "no" scores 0.76
