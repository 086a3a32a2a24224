"""Laws of the comparison methods and of averages over samples."""

import copy
import math

import pytest
import torch

from lib import hspace
from lib.diffusion import models
from lib.diffusion.sampling import ddim, time_grid
from lib.hspace import baselines, means, trained

STEPS = 6  # times 0, 199, 399, 599, 799, 999
TOWARDS = torch.tensor([1.0, 0.0, 0.0])


def toy_encode(images):
    """Unit vector of the channel means."""
    return torch.nn.functional.normalize(images.mean((2, 3)) + 0.01, dim=1)


@pytest.fixture(scope="module")
def pixel(pixel):
    """The bounded pixel model with its blocks within reach of the hooks."""
    twin = copy.copy(pixel)
    twin.unet = copy.deepcopy(pixel.unet)
    twin.unet.mid_block, twin.unet.up_blocks = twin.unet.unet.mid_block, twin.unet.unet.up_blocks
    return twin


@pytest.fixture
def change(pixel):
    return hspace.constant(models.unit_normal(hspace.h_shape(pixel), 3))


@pytest.mark.parametrize("layer", ["mid_block", "up_blocks.0"])
def test_the_shift_in_epsilon_makes_the_same_edit_on_its_own_sample(pixel, layer):
    change = hspace.constant(models.unit_normal(hspace.h_shape(pixel, layer=layer), 3))
    x = pixel.noise(1, 0)
    run = {"steps": STEPS, "t_edit": 500, "layer": layer}
    recorded = means.mean_epsilon(pixel, x, change, strength=2.0, **run)
    assert sorted(recorded) == [599, 799, 999]
    ours = baselines.epsilon_shift(pixel, x, recorded, steps=STEPS)
    expected = hspace.edit(pixel, x, change, strength=2.0, **run)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert float((ours - ddim(pixel, x, steps=STEPS)).abs().max()) > 1e-2
    other = baselines.epsilon_shift(pixel, pixel.noise(1, 9), recorded, steps=STEPS)
    own = hspace.edit(pixel, pixel.noise(1, 9), change, strength=2.0, **run)
    assert float((other - own).abs().max()) > 1e-3  # on another sample it does not


def test_the_mean_shift_is_the_mean_over_single_samples(pixel, change):
    x, run = pixel.noise(3, 0), {"steps": STEPS, "t_edit": 500}
    together = means.mean_epsilon(pixel, x, change, batch=2, **run)
    alone = [means.mean_epsilon(pixel, row[None], change, **run) for row in x]
    for t, value in together.items():
        expected = sum(one[t] for one in alone) / 3
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="above every step"):
        means.mean_epsilon(pixel, x, change, steps=STEPS, t_edit=1000)


def test_classifier_guidance_is_a_symmetric_shift(gaussian):
    x, field = gaussian.noise(2, 0), models.unit_normal(gaussian.latent_shape, 1).double()
    ours = baselines.guide(gaussian, x, lambda x, t: field, steps=STEPS, scale=0.3, t_stop=500)
    shift = {
        t: -0.3 * math.sqrt(1 - gaussian.alpha(t)) * field for t in time_grid(STEPS) if t >= 500
    }
    expected = baselines.epsilon_shift(gaussian, x, shift, steps=STEPS, symmetric=True)
    torch.testing.assert_close(ours, expected)
    assert float((ours - ddim(gaussian, x, steps=STEPS)).abs().max()) > 1e-3


def test_mixing_goes_from_the_plain_image_to_the_reference(gaussian):
    x, reference = gaussian.noise(3, 0), gaussian.noise(1, 7)
    run = {"steps": STEPS, "t_mix": 300}
    plain, target = ddim(gaussian, x, steps=STEPS), ddim(gaussian, reference, steps=STEPS)
    none = baselines.mix_latents(gaussian, x, reference, weight=0.0, **run)
    torch.testing.assert_close(none, plain)
    full = baselines.mix_latents(gaussian, x, reference, weight=1.0, **run)
    torch.testing.assert_close(full, target.expand_as(full))


def test_fine_tuning_moves_a_copy_towards_the_text(pixel):
    x, before = pixel.noise(16, 0), pixel.weight_hash
    run = {"steps": STEPS, "t_start": 599}
    tuned = baselines.fine_tune(pixel, x, toy_encode, TOWARDS, rate=3e-3, batch=4, short=3, **run)
    assert pixel.weight_hash == before != tuned.weight_hash
    middle = ddim(pixel, pixel.noise(8, 5), steps=STEPS, stop=599)
    decode = lambda g: toy_encode(ddim(g, middle, steps=STEPS, start=599))  # noqa: E731
    moved = [
        float((decode(baselines.blend(pixel, tuned, w)) - decode(pixel)).mean(0) @ TOWARDS)
        for w in (0.0, 0.5, 1.0)
    ]
    assert moved[0] == 0 and 0 < moved[1] < moved[2]
    torch.testing.assert_close(decode(baselines.blend(pixel, tuned, 1.0)), decode(tuned))


def test_labelled_differences_are_those_of_all_samples_at_once(pixel):
    x = pixel.noise(7, 0)
    label = lambda images: {"bright": images.mean((1, 2, 3)) > 0, "none": images[:, 0, 0, 0] > 9}  # noqa: E731
    layers = ("mid_block", "up_blocks.0")
    found = means.labelled_differences(pixel, x, label, steps=STEPS, layers=layers, batch=3)
    for layer in layers:
        with hspace.capture(pixel, layer=layer) as h:
            images = ddim(pixel, x, steps=STEPS)
        expected = means.mean_difference(h, label(images)["bright"])
        assert list(found[layer]) == ["bright"] and set(expected) == set(time_grid(STEPS))
        for t, v in expected.items():
            torch.testing.assert_close(found[layer]["bright"][t], v, rtol=1e-3, atol=1e-4)


def test_random_halves_are_groups_that_no_label_knows(pixel):
    x, coins = pixel.noise(7, 0), []
    for i in range(2):
        coins.append(torch.rand(7, generator=torch.Generator().manual_seed(i)) < 0.5)
    label = lambda images: {"bright": images.mean((1, 2, 3)) > 0}  # noqa: E731
    run = {"steps": STEPS, "layers": ("mid_block", "up_blocks.0"), "batch": 3}
    found = means.labelled_differences(pixel, x, label, halves=2, **run)
    assert list(found["up_blocks.0"]) == ["bright"]
    with hspace.capture(pixel) as h:
        ddim(pixel, x, steps=STEPS)
    for i, coin in enumerate(coins):
        expected = means.mean_difference(h, coin)
        for t, v in found["mid_block"][f"half {i}"].items():
            torch.testing.assert_close(v, expected[t], rtol=1e-3, atol=1e-4)


def test_random_directions_have_the_norm_of_the_change():
    changes = {9: torch.full((2, 3, 3), 2.0), 500: torch.full((2, 3, 3), -0.1)}
    noise = means.random_like(changes, 0)
    for t, v in changes.items():
        torch.testing.assert_close(noise[t].norm(), v.norm())
    cosine = (noise[9].flatten() @ noise[500].flatten()) / noise[9].norm() / noise[500].norm()
    assert float(cosine) == pytest.approx(1.0)
    assert not torch.equal(noise[9], means.random_like(changes, 1)[9])


def test_bad_input_is_refused(pixel, change):
    x = pixel.noise(1, 0)
    with pytest.raises(ValueError, match="grid of 6 steps"):
        baselines.epsilon_shift(pixel, x, {500: x[0]}, steps=STEPS)
    with pytest.raises(ValueError, match="weight = 1.5"):
        baselines.mix_latents(pixel, x, x, steps=STEPS, t_mix=0, weight=1.5)
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            baselines.guide(pixel, x, lambda x, t: x, steps=STEPS, scale=scale)
        with pytest.raises(ValueError, match="finite"):
            baselines.blend(pixel, pixel, scale)
    assert trained.directional_loss(torch.tensor(1.0)) == 0
