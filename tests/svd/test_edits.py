import pytest
import torch

from lib import hspace
from lib.diffusion import patterns, sampling
from lib.diffusion.models import unit_normal
from lib.svd import edits, properties

STEPS = 8


@pytest.fixture(scope="module")
def face_model(pixel):
    """A model with a mid-block whose samples stay bounded."""
    twin = pixel.to(torch.float32)
    twin.unet.mid_block = twin.unet.unet.mid_block
    return twin


@pytest.fixture(scope="module")
def exact():
    return patterns.Patterns(16)


@pytest.fixture(scope="module")
def two_prompts(exact):
    noise = exact.noise(24, 0)
    run = {"steps": 20, "progress": False}
    return [properties.trajectory(exact, noise, prompt=p, **run) for p in ("left", "right")]


def test_every_mix_of_two_latents_starts_at_the_source_and_ends_at_the_target():
    x, z = (unit_normal((4, 2, 8, 8), seed, 0).double() for seed in (0, 1))
    ways = edits.latent_ways(x, z, k=8)
    for name, way in ways.items():
        assert way(0.4).shape == x.shape, name
    for name in ("interpolation", "slerp", "AVI"):
        assert torch.allclose(ways[name](0), x) and torch.allclose(ways[name](1), z), name
    assert torch.allclose(ways["AVI"](0.3), ways["interpolation"](0.3))  # all 8 of 8 atoms
    fewer = edits.latent_ways(x, z, k=2)
    assert not torch.allclose(fewer["AVI"](0.3), fewer["interpolation"](0.3))


def test_a_restart_has_fresh_noise_of_the_right_share():
    clean = torch.full((3, 1, 64, 64), 0.5)
    fresh = edits.renoised(clean, 0.36, seed=4)
    assert torch.allclose(fresh.mean(), torch.tensor(0.3), atol=0.05)
    assert abs(float(fresh.std()) - 0.8) < 0.02
    assert torch.equal(fresh[:1], edits.renoised(clean[:1], 0.36, seed=4))
    assert torch.equal(edits.renoised(clean, 1.0, seed=4), clean)


def test_at_pure_noise_a_switched_prompt_is_the_target_and_an_injection_does_nothing(
    exact, two_prompts
):
    ways = edits.prompt_ways(exact, *two_prompts, ("left", "right"), steps=20, t=999, row=0)
    assert torch.allclose(ways["switch"], ways["target"])
    assert torch.allclose(ways["source"], two_prompts[0][-1].clamp(-1, 1))
    for name in ("AVI", "interpolation"):  # x = z there
        assert torch.allclose(ways[name], ways["source"], atol=1e-6), name


def test_late_an_injection_turns_the_pattern_and_a_switch_does_not(exact, two_prompts):
    grid = properties.times(exact, 20)
    row = grid.index(min(grid, key=lambda t: abs(t - 250)))
    ways = edits.prompt_ways(
        exact, *two_prompts, ("left", "right"), steps=20, t=grid[row], row=row, weight=0.85
    )
    turned = {
        n: float((exact.signs(im, exact.coarse) < 0).double().mean()) for n, im in ways.items()
    }
    assert turned["source"] == 0 and turned["target"] == 1
    assert turned["switch"] == 0 and turned["interpolation"] > 0.8 and turned["AVI"] > 0.6


def test_two_trajectories_must_be_of_one_noise(exact, two_prompts):
    a, b = two_prompts
    with pytest.raises(ValueError, match="same noise"):
        edits.prompt_ways(exact, a, b[:, :3], ("left", "right"), steps=20, t=999, row=0)


def test_a_shift_from_the_noisiest_time_on_is_the_edit_of_the_h_space_room(face_model):
    noise, change = face_model.noise(3, 0), 0.3 * unit_normal(hspace.h_shape(face_model), 1)
    delta = hspace.constant(change)
    own = edits.shifted(face_model, noise, delta, 1.5, steps=STEPS, start=999)
    theirs = hspace.edit(face_model, noise, delta, steps=STEPS, t_edit=0, strength=1.5)
    plain = sampling.ddim(face_model, noise, steps=STEPS).clamp(-1, 1)
    assert torch.allclose(own, theirs.clamp(-1, 1), atol=1e-5)
    assert not torch.allclose(own, plain, atol=1e-3)
    half = edits.shifted(face_model, noise, delta, 1.5, steps=STEPS, start=999, stop=428)
    rest = edits.shifted(face_model, half, delta, 1.5, steps=STEPS, start=428)
    assert torch.allclose(rest, own, atol=1e-5)


def test_ways_of_a_shift_do_nothing_at_strength_zero(face_model):
    path = properties.trajectory(face_model, face_model.noise(2, 0), steps=STEPS)
    t = properties.times(face_model, STEPS)[4]
    delta = hspace.constant(unit_normal(hspace.h_shape(face_model), 1))
    ways = edits.shift_ways(face_model, path[0], path[4], path[-1], delta, steps=STEPS, t=t, seed=3)
    plain = path[-1].clamp(-1, 1)
    assert torch.allclose(ways["h-space"](0), plain, atol=1e-5)
    assert torch.allclose(ways["switch"](0), plain, atol=1e-5)
    assert not torch.allclose(ways["restart"](0), plain, atol=1e-2)


def test_a_cache_makes_every_shifted_run_and_changes_none(face_model):
    noise = face_model.noise(2, 0)
    delta = hspace.constant(unit_normal(hspace.h_shape(face_model), 1))
    seen, own = [], {"steps": STEPS, "t": 428, "seed": 3}

    def cache(function, *arguments, **options):
        seen.append(function.__name__)
        return function(*arguments, **options)

    start = face_model, noise, noise, noise, delta
    kept, plain = edits.shift_ways(*start, cache=cache, **own), edits.shift_ways(*start, **own)
    assert all(torch.equal(kept[way](1.0), plain[way](1.0)) for way in plain)
    assert seen == ["shifted"] * 3


def test_the_mean_shift_is_the_difference_of_mean_h(face_model):
    without, present = face_model.noise(3, 0), face_model.noise(3, 1)
    delta = edits.mean_shift(face_model, without, present, steps=STEPS)
    with hspace.capture(face_model) as h:
        face_model.epsilon(torch.cat([without, present]), 999)
    found = delta(h[999][:1], 999)
    assert torch.allclose(found, h[999][3:].mean(0) - h[999][:3].mean(0), atol=1e-6)
    back = edits.mean_shift(face_model, present, without, steps=STEPS)
    assert torch.allclose(back(h[999][:1], 0), -delta(h[999][:1], 0), atol=1e-5)
