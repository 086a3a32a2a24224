"""The code of a Diffusion Autoencoder: what must hold of any weights."""

import pytest
import torch

from lib.diffusion import models, sampling
from lib.hspace import autoencoder

RUN = {"steps": 4}


@pytest.fixture(scope="module")
def base():
    return models.load("avatars-ddpm")


@pytest.fixture
def untrained(base):
    """Whose code changes nothing yet."""
    torch.manual_seed(0)
    model = autoencoder.Autoencoder(base).requires_grad_(False)
    model.fit_axes(pictures(400, seed=1))
    return model


@pytest.fixture
def moved(untrained):
    """Whose code changes the prediction, as a trained one's does."""
    last = untrained.join[-1]
    last.weight.copy_(0.1 * torch.randn(last.weight.shape))
    last.bias[0] = 0.5
    return untrained


def pictures(n, seed=0):
    """Smooth random pictures of 32 px, in [−1, 1]."""
    coarse = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").tanh()


def test_before_training_the_model_is_the_u_net_bit_for_bit(base, untrained):
    images, noise = pictures(3), base.noise(3, 0)
    plain = sampling.ddim(base, noise, **RUN)
    assert torch.equal(autoencoder.decode(untrained, untrained.encode(images), noise, **RUN), plain)
    coded = autoencoder.invert_images(untrained, images, **RUN)
    assert torch.equal(coded.latents, sampling.invert(base, images, refine=2, **RUN))


def test_codes_are_white_on_the_images_of_the_axes_which_are_the_leading_components(untrained):
    images = pictures(400, seed=1)
    code = untrained.encode(images)
    torch.testing.assert_close(code.T @ code / 400, torch.eye(64), atol=2e-3, rtol=0)
    x = (images.flatten(1) - untrained.mean).double()
    values = torch.linalg.svdvals(x)
    rest = x - x @ untrained.axes.double() @ torch.linalg.pinv(untrained.axes.double())
    best = values[64:].square().sum()  # what no 64 components hold
    assert best <= rest.square().sum() < 1.1 * best  # a randomised decomposition


def test_the_prediction_moves_to_the_picture_of_the_code_as_told(base, untrained):
    """With m = 1 and r = 0 the predicted image is y, the picture of z, at every time."""
    untrained.join[-1].bias[0] = 1.0
    code = untrained.encode(pictures(2))
    picture = untrained.mean + code @ torch.linalg.pinv(untrained.axes)
    noise = base.noise(2, 1)
    for t in (0, 300, 999):
        with untrained.conditioned(code) as generator:
            eps = generator.epsilon(noise, t)
        found = sampling.predicted(noise, eps, base.alpha(t))
        scale = noise.abs().max() / base.alpha(t) ** 0.5  # of what rounding is relative to
        assert (found - picture.view_as(found)).abs().max() < 1e-5 * scale + 1e-4


def test_an_edit_of_no_strength_is_the_round_trip_and_every_row_has_its_own_code(moved):
    images = pictures(18)  # more than one call of the network
    coded = autoencoder.invert_images(moved, images, **RUN)
    back = autoencoder.decode(moved, *coded, **RUN)
    change = torch.ones(64)
    assert torch.equal(autoencoder.edit(moved, coded, change, strength=0.0, **RUN), back)
    new = autoencoder.edit(moved, coded, change, strength=0.5, **RUN)
    assert (new - back).abs().amax((1, 2, 3)).min() > 1e-3
    one = autoencoder.Coded(coded.code[17:], coded.latents[17:])
    alone = autoencoder.edit(moved, one, change, strength=0.5, **RUN)
    rounding = 1e-5 * float(new.abs().max())  # the values of random weights are not in [−1, 1]
    torch.testing.assert_close(alone, new[17:], atol=rounding, rtol=0)
    swapped = autoencoder.Coded(coded.code[:1], coded.latents[17:])
    other = autoencoder.edit(moved, swapped, change, strength=0.5, **RUN)
    assert (other - new[17:]).abs().max() > 100 * rounding  # another row's code would be seen


def test_inversion_with_the_code_is_the_inverse_where_it_is_refined(moved):
    images = pictures(2)
    error = []
    for refine in (0, 20):
        coded = autoencoder.invert_images(moved, images, steps=20, refine=refine)
        error.append(float((autoencoder.decode(moved, *coded, steps=20) - images).abs().mean()))
    assert error[1] < 0.25 * error[0]


def test_a_direction_finds_the_axis_on_which_the_codes_differ():
    codes = torch.randn(4_000, 64, generator=torch.Generator().manual_seed(0))
    spread = torch.linspace(0.5, 2.0, 64)
    w = torch.zeros(64)
    w[3], w[7] = 0.6, -0.8
    odds = 4 * codes @ w
    has = torch.rand(4_000, generator=torch.Generator().manual_seed(1)) < odds.sigmoid()
    found = autoencoder.direction(codes * spread + 5, has)
    assert torch.cosine_similarity(found / spread, w, dim=0) > 0.97
    assert abs(float((found / spread).norm()) - 1) < 0.05
    chance = autoencoder.direction(codes * spread, has[torch.randperm(4_000)])
    assert abs(float(torch.cosine_similarity(chance / spread, w, dim=0))) < 0.5


def test_a_saved_autoencoder_is_the_same_in_half_precision(base, moved, tmp_path):
    autoencoder.save(moved, tmp_path)
    again = autoencoder.load(base, tmp_path)
    for name, value in moved.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name
    assert again.weight_hash == moved.half().float().weight_hash
    assert not any(p.requires_grad for p in again.parameters())


def test_what_cannot_be_used_is_refused(base, moved, tmp_path):
    autoencoder.save(moved, tmp_path)
    other = models.load("models/avatars-ddpm/snapshot-1-16")
    with pytest.raises(ValueError, match="trained on the model with weights"):
        autoencoder.load(other, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="missing or damaged"):
        autoencoder.load(base, tmp_path)
    with pytest.raises(ValueError, match="codes .* for 2 rows"):
        autoencoder.decode(moved, torch.zeros(3, 64), base.noise(2, 0), **RUN)
    with pytest.raises(ValueError, match="images have shape"):
        autoencoder.invert_images(moved, torch.zeros(1, 3, 16, 16), **RUN)
    with pytest.raises(ValueError, match="examples of both kinds"):
        autoencoder.direction(torch.randn(9, 64), torch.ones(9, dtype=torch.bool))
