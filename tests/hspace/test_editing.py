"""Laws of reading, shifting and editing through h-space."""

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib import hspace
from lib.diffusion import models
from lib.diffusion.sampling import ddim, invert, predicted, step_noise, time_grid, update
from lib.hspace import bases, contest, editing, means, schedule, trained

STEPS = 6  # times 0, 199, 399, 599, 799, 999
KINDS = ("celebahq-256", "learned-sigma-256", "iddpm", "sd-1.5", "sd-2.1-base")
GUIDED = {"prompt": ["ab", "cd ef", "x"], "guidance": 3.0}


def iddpm(alphas):
    """The other learned-sigma family: two layers a block, no scale and shift by time."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        out_channels=6,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return models.Generator(unet.eval().requires_grad_(False), alphas, (3, 8, 8))


def bounded(generator):
    """The model with its network's answer scaled down on top of a Gaussian's, blocks in reach."""

    class Bounded(torch.nn.Module):
        def __init__(self, unet, alphas):
            super().__init__()
            self.inner, self.config = unet, unet.config
            self.register_buffer("alphas", alphas)
            for name in ("mid_block", "up_blocks", "time_proj", "time_embedding"):
                setattr(self, name, getattr(unet, name))

        def forward(self, x, t, return_dict=False, **states):
            a = self.alphas[t].view(-1, 1, 1, 1)
            answer = self.inner(x, t, return_dict=False, **states)[0][:, : x.shape[1]]
            return ((1 - a).sqrt() * x / (1 - 0.75 * a) + 0.3 * (1 - a).sqrt() * answer,)

    twin = copy.copy(generator)
    twin.unet = Bounded(generator.unet, generator.alphas.to(generator.dtype))
    return twin


@pytest.fixture(scope="session")
def exact(tiny):
    """One float64 model of each kind."""
    found = {k: models.load(p, device="cpu", dtype=torch.float64) for k, p in tiny.items()}
    found["iddpm"] = iddpm(found["celebahq-256"].alphas).to(torch.float64)
    return {kind: bounded(generator) for kind, generator in found.items()}


@pytest.fixture(params=KINDS)
def any_model(request, exact):
    return exact[request.param]


@pytest.fixture
def pixel(exact):
    return exact["celebahq-256"]


@pytest.fixture
def text(exact):
    return exact["sd-1.5"]


def options(generator):
    return GUIDED if generator.text_encoder is not None else {}


def change_for(generator, seed=0, size=1.0):
    return size * models.unit_normal(hspace.h_shape(generator), 77, seed).double()


def hooks(generator):
    parts = generator.unet.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts)


def apart(a, b):
    """Largest difference as a share of the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def two_pass_edit(generator, x, change, t_edit, t_boost, seed=0, **options):
    """The three phases by the formulas of the paper, one network call for each prediction."""
    times = [*time_grid(STEPS)[::-1], -1]
    for t, after in zip(times[:-1], times[1:], strict=True):
        a, b = generator.alpha(t), generator.alpha(after)
        plain = shifted = generator.epsilon(x, t, **options)
        if t >= t_edit:
            with hspace.inject(generator, hspace.constant(change)):
                shifted = generator.epsilon(x, t, **options)
        clean = (x - math.sqrt(1 - a) * shifted) / math.sqrt(a)
        sigma = 0.0
        if t < t_boost and after >= 0:
            sigma = math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * clean + math.sqrt(1 - b - sigma**2) * plain
        if sigma > 0:
            x = x + sigma * step_noise(generator, range(len(x)), seed, t)
    return x


# --- editing


def test_strength_zero_is_plain_ddim(any_model):
    x, own = any_model.noise(3, 0), options(any_model)
    delta = hspace.constant(change_for(any_model))
    run = {"steps": STEPS, "decode": False, **own}
    edited = hspace.edit(any_model, x, delta, t_edit=0, strength=0.0, **run)
    assert apart(edited, ddim(any_model, x, **run)) < 1e-12


def test_strength_zero_is_plain_ddim_in_single_precision(tiny):
    generator = bounded(models.load(tiny["celebahq-256"], device="cpu"))
    x, delta = generator.noise(3, 0), hspace.constant(change_for(generator))
    edited = hspace.edit(generator, x, delta, steps=20, t_edit=0, strength=0.0)
    assert edited.dtype == torch.float32
    assert apart(edited, ddim(generator, x, steps=20)) < 20 * 1e-6


def test_edit_follows_the_three_phases_of_the_paper(any_model):
    x, own, change = any_model.noise(3, 0), options(any_model), change_for(any_model)
    run = {"t_edit": 500, "t_boost": 300, "seed": 4, **own}
    ours = hspace.edit(any_model, x, hspace.constant(change), steps=STEPS, decode=False, **run)
    assert apart(ours, two_pass_edit(any_model, x, change, **run)) < 1e-12
    assert apart(ours, ddim(any_model, x, steps=STEPS, decode=False, **own)) > 1e-3


def test_shift_moves_the_predicted_image_alone(pixel):
    x, change = pixel.noise(2, 0), hspace.constant(change_for(pixel))
    shifted, plain = hspace.predictions(pixel, x, 599, change)
    a, b = pixel.alpha(599), pixel.alpha(399)
    moved = update(x, shifted, a, b, eps_direction=plain) - update(x, plain, a, b)
    expected = -math.sqrt(b / a) * math.sqrt(1 - a) * (shifted - plain)
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)
    assert float(moved.abs().max()) > 1e-3


def test_doubled_batch_equals_two_passes(any_model):
    x, own = any_model.noise(3, 0), options(any_model)
    delta = hspace.constant(change_for(any_model))
    shifted, plain = hspace.predictions(any_model, x, 599, delta, **own)
    torch.testing.assert_close(plain, any_model.epsilon(x, 599, **own), rtol=1e-10, atol=1e-12)
    with hspace.inject(any_model, delta):
        alone = any_model.epsilon(x, 599, **own)
    torch.testing.assert_close(shifted, alone, rtol=1e-10, atol=1e-12)
    assert float((shifted - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["celebahq-256", "learned-sigma-256", "sd-1.5", "v"])
def test_one_way_down_serves_the_shifted_and_the_plain_prediction(exact, kind):
    generator = copy.copy(exact["sd-1.5" if kind == "v" else kind])
    generator.unet = generator.unet.inner
    generator.prediction = "v_prediction" if kind == "v" else "epsilon"
    x, own = generator.noise(3, 0), options(generator)
    rows, counts, change = [], {}, change_for(generator)
    delta = lambda h, t: rows.append(len(h)) or change  # noqa: E731
    for block in ("conv_in", "mid_block", "conv_out"):
        part = getattr(generator.unet, block)
        see = lambda m, args, block=block: counts.update({block: len(args[0])})  # noqa: E731
        part.register_forward_pre_hook(see)
    before = hooks(generator)
    shifted, plain = hspace.predictions(generator, x, 599, delta, **own)
    pair = 2 if own else 1  # of guidance
    assert counts == {"conv_in": 3 * pair, "mid_block": 3 * pair, "conv_out": 6 * pair}
    assert rows == [3 * pair] and hooks(generator) == before
    with hspace.inject(generator, hspace.constant(change)):
        alone = generator.epsilon(x, 599, **own)
    assert apart(shifted, alone) < 1e-12
    assert apart(plain, generator.epsilon(x, 599, **own)) < 1e-12
    assert apart(shifted, plain) > 1e-6
    with pytest.raises(KeyError, match="broken"):
        hspace.predictions(generator, x, 599, lambda h, t: {}["broken"], **own)
    assert hooks(generator) == before
    for block in ("conv_in", "mid_block", "conv_out"):
        getattr(generator.unet, block)._forward_pre_hooks.clear()


def test_an_edit_on_one_way_down_follows_the_three_phases(exact):
    generator = copy.copy(exact["celebahq-256"])
    generator.unet = generator.unet.inner
    x, change = generator.noise(3, 0), 0.1 * change_for(generator)
    run = {"t_edit": 500, "t_boost": 300, "seed": 4}
    for batch in (1, 6):
        ours = hspace.edit(
            generator, x, hspace.constant(change), steps=STEPS, batch=batch, decode=False, **run
        )
        assert apart(ours, two_pass_edit(generator, x, change, **run)) < 1e-10


def test_guidance_is_taken_within_the_edited_and_within_the_plain_pair(text):
    x, delta = text.noise(2, 0), hspace.constant(change_for(text))

    def one(prompt, shifted):
        if not shifted:
            return text.epsilon(x, 599, prompt=prompt)
        with hspace.inject(text, delta):
            return text.epsilon(x, 599, prompt=prompt)

    own = {"prompt": "ab", "negative": "cd", "guidance": 3.0}
    ours = hspace.predictions(text, x, 599, delta, **own)
    for eps, shifted in zip(ours, (True, False), strict=True):
        expected = one("cd", shifted) + 3.0 * (one("ab", shifted) - one("cd", shifted))
        torch.testing.assert_close(eps, expected, rtol=1e-10, atol=1e-12)


def test_symmetric_edit_is_plain_ddim_under_the_shift(any_model):
    x, own, change = any_model.noise(3, 0), options(any_model), change_for(any_model)
    run = {"steps": STEPS, "decode": False, **own}
    edited = hspace.edit(any_model, x, hspace.constant(change), t_edit=500, symmetric=True, **run)
    with hspace.inject(any_model, lambda h, t: change * float(t >= 500)):
        expected = ddim(any_model, x, **run)
    assert apart(edited, expected) < 1e-12


def test_phases_switch_at_the_given_times(pixel):
    seen = []

    def record(h, t):
        seen.append(t)
        return torch.zeros_like(h)

    x = pixel.noise(1, 0)
    for edge, expected in ((599, [999, 799, 599]), (600, [999, 799]), (1000, []), (0, 6 * [0])):
        seen.clear()
        hspace.edit(pixel, x, record, steps=STEPS, t_edit=edge)
        assert len(seen) == len(expected) and (edge == 0 or seen == expected)


def test_boost_begins_below_its_time_and_spares_the_last_step(pixel):
    x = pixel.noise(1, 0)
    plain = ddim(pixel, x, steps=STEPS)
    for edge, noisy in ((0, False), (199, False), (200, True)):
        assert bool((hspace.reconstruct(pixel, x, steps=STEPS, t_boost=edge) != plain).any()) == (
            noisy
        )


def test_all_steps_may_be_boosted(pixel):
    x = pixel.noise(2, 0)
    boosted = hspace.reconstruct(pixel, x, steps=STEPS, t_boost=1000, seed=3)
    torch.testing.assert_close(boosted, ddim(pixel, x, steps=STEPS, eta=1.0, seed=3))


def test_boost_noise_is_that_of_the_reconstruction(pixel):
    x, delta = pixel.noise(3, 0), hspace.constant(change_for(pixel))
    run = {"steps": STEPS, "t_edit": 500, "t_boost": 450, "seed": 5}
    same = hspace.asyrp(pixel, x, delta, strength=0.0, **run)
    assert apart(same.edited, same.reconstruction) < 1e-12
    other = hspace.reconstruct(pixel, x, steps=STEPS, t_boost=450, seed=6)
    assert apart(same.reconstruction, other) > 1e-3


@pytest.mark.parametrize("batch", [1, 2])
def test_edit_does_not_depend_on_the_batch(any_model, batch):
    x, own = any_model.noise(3, 0), options(any_model)
    delta = hspace.constant(change_for(any_model))
    run = {"steps": STEPS, "t_edit": 500, "t_boost": 450, "progress": False, **own}
    whole, parts = (hspace.asyrp(any_model, x, delta, batch=n, **run) for n in (3, batch))
    assert apart(parts.edited, whole.edited) < 1e-10
    assert apart(parts.reconstruction, whole.reconstruction) < 1e-10


def test_first_continues_the_rows_of_an_earlier_call(pixel):
    x, delta = pixel.noise(3, 0), hspace.constant(change_for(pixel))
    run = {"steps": STEPS, "t_edit": 500, "t_boost": 450}
    whole = hspace.asyrp(pixel, x, delta, **run)
    later = hspace.asyrp(pixel, x[1:], delta, first=1, **run)
    assert apart(later.edited, whole.edited[1:]) < 1e-10
    assert apart(later.reconstruction, whole.reconstruction[1:]) < 1e-10


@pytest.mark.parametrize("t_edit", [0, 500, 1000])
def test_latent_models_decode_the_edited_latents(text, t_edit):
    x, delta = text.noise(2, 0), hspace.constant(change_for(text))
    run = {"steps": 2, "t_edit": t_edit}
    images = hspace.asyrp(text, x, delta, **run)
    latents = hspace.asyrp(text, x, delta, decode=False, **run)
    torch.testing.assert_close(images.edited, text.decode(latents.edited))
    assert images.reconstruction.shape == (2, *text.image_shape)


@pytest.mark.parametrize("strength", [-1.0, 0.3, 2.5])
def test_strength_multiplies_the_change(pixel, strength):
    x, change = pixel.noise(2, 0), change_for(pixel)
    run = {"steps": STEPS, "t_edit": 500}
    ours = hspace.edit(pixel, x, hspace.constant(change), strength=strength, **run)
    assert apart(ours, hspace.edit(pixel, x, hspace.constant(strength * change), **run)) < 1e-12


def test_opposite_strengths_move_a_prediction_opposite_ways_to_first_order(pixel):
    x, change = pixel.noise(2, 0), change_for(pixel)
    plain = pixel.epsilon(x, 599)
    forth, back = (
        hspace.predictions(pixel, x, 599, hspace.constant(c * change))[0] - plain
        for c in (1e-5, -1e-5)
    )
    assert apart(forth, -back) < 1e-3


def test_fewer_steps_than_in_training_raise_the_change_in_proportion(pixel):
    x, change = pixel.noise(2, 0), change_for(pixel)
    run = {"steps": STEPS, "t_edit": 500}
    ours = hspace.edit(pixel, x, hspace.constant(change), trained_steps=2 * STEPS, **run)
    assert apart(ours, hspace.edit(pixel, x, hspace.constant(change), strength=2.0, **run)) < 1e-12


@pytest.fixture
def shipped(pixel, tmp_path):
    """An f_t trained in STEPS steps down to t = 500, as `load` reads it from its file."""
    block, x = trained.DeltaBlock(pixel), pixel.noise(2, 0)
    own = {"steps": STEPS, "t_edit": 500, "batch": 2, "rate": 0.01}
    trained.train(pixel, block, x, lambda i: i.flatten(1)[:, :9], torch.ones(9).double(), **own)
    return trained.load(pixel, trained.save(block, tmp_path / "f.safetensors"))


def test_a_loaded_shift_brings_its_window_and_its_number_of_steps(pixel, shipped):
    x, run = pixel.noise(2, 1), {"steps": 50}
    assert (shipped.t_edit, shipped.trained_steps) == (500, STEPS)
    known = hspace.edit(pixel, x, shipped, **run)
    stated = hspace.edit(pixel, x, shipped, t_edit=500, trained_steps=STEPS, **run)
    assert torch.equal(known, stated)
    weaker = hspace.edit(pixel, x, lambda h, t: shipped(h, t) * (STEPS / 50), t_edit=500, **run)
    assert apart(known, weaker) < 1e-12
    other = {"t_edit": 300, "trained_steps": 50}
    given = hspace.edit(pixel, x, shipped, **other, **run)
    plain = hspace.edit(pixel, x, lambda h, t: shipped(h, t), t_edit=300, **run)
    assert apart(given, plain) < 1e-12 and apart(given, known) > 1e-6
    assert torch.equal(hspace.asyrp(pixel, x, shipped, **run).edited, known)


def test_a_sum_brings_what_its_parts_bring(pixel, shipped):
    x, free = pixel.noise(2, 1), hspace.constant(change_for(pixel, 3, 0.1))
    both, run = hspace.combine({shipped: 1.0, free: 0.5}), {"steps": 50}
    found = hspace.edit(pixel, x, both, t_edit=500, **run)
    scaled = lambda h, t: (shipped(h, t) * (STEPS / 50) + 0.5 * free(h, t)) / math.sqrt(2)  # noqa: E731
    assert apart(found, hspace.edit(pixel, x, scaled, t_edit=500, **run)) < 1e-12
    twice = hspace.combine({shipped: 1.0, hspace.combine({shipped: 1.0}): 1.0})
    assert both.t_edit is None and twice.t_edit == 500
    mean = means.mean_over_samples(pixel, x, shipped, **run).per_step
    with hspace.capture(pixel) as h, hspace.inject(pixel, lambda h, t: shipped(h, t) * STEPS / 50):
        pixel.epsilon(x, 999)
    expected = shipped(h[999], 999).mean(0) * STEPS / 50
    torch.testing.assert_close(mean[999], expected, rtol=1e-9, atol=1e-12)


def test_a_shift_without_a_window_needs_one(pixel, shipped):
    x, free = pixel.noise(1, 0), hspace.constant(change_for(pixel))
    for delta in (free, trained.DeltaBlock(pixel), hspace.combine({shipped: 1.0, free: 1.0})):
        with pytest.raises(ValueError, match="carries no window"):
            hspace.edit(pixel, x, delta, steps=STEPS)
    assert shipped.weight_hash != trained.DeltaBlock(pixel).weight_hash
    twin = copy.copy(shipped)
    twin.trained_steps = None
    assert twin.weight_hash != shipped.weight_hash  # a cache tells the two apart


# --- the smallest sufficient strength


def test_each_face_stops_at_the_first_strength_that_is_enough(pixel):
    x, delta = pixel.noise(4, 0), hspace.constant(change_for(pixel))
    run, levels = {"steps": STEPS, "t_edit": 500}, (0.5, 1.0, 2.0)
    plain = hspace.reconstruct(pixel, x, steps=STEPS)
    by_level = {c: hspace.edit(pixel, x, delta, strength=c, **run) for c in levels}
    moved = {c: (image - plain).abs().amax((1, 2, 3)) for c, image in by_level.items()}
    edges = torch.stack([moved[1.0][0], moved[0.5][1], moved[2.0][2] * 9, -moved[0.5][3]])
    edges = edges - 1e-9 * edges.abs()

    def enough(images):
        rows = [int((plain - image).abs().amax((1, 2, 3)).argmin()) for image in images]
        apart_ = [float((i - plain[r]).abs().max()) for i, r in zip(images, rows, strict=True)]
        return torch.tensor([a >= edges[r] for a, r in zip(apart_, rows, strict=True)])

    found = hspace.sufficient(pixel, x, delta, enough, levels=levels, **run)
    assert found.strengths.tolist() == [1.0, 0.5, 2.0, 0.0]
    assert found.reached.tolist() == [True, True, False, True]
    expected = torch.stack([by_level[1.0][0], by_level[0.5][1], by_level[2.0][2], plain[3]])
    assert apart(found.images, expected) < 1e-9
    again = contest.per_face(pixel, x, delta, found.strengths, strength=1.0, **run)
    assert apart(again, expected) < 1e-9
    each = editing.edit_each(pixel, x, delta, found.strengths, batch=3, **run)
    assert apart(each, expected) < 1e-9


@pytest.mark.parametrize("levels", [(), (0.0, 1.0), (1.0, 0.5)])
def test_strengths_that_do_not_rise_are_refused(pixel, levels):
    delta, run = hspace.constant(change_for(pixel)), {"steps": STEPS, "t_edit": 500}
    with pytest.raises(ValueError, match="rising strengths above 0"):
        hspace.sufficient(pixel, pixel.noise(1, 0), delta, lambda x: x, levels=levels, **run)


# --- the cancellation theorem


@pytest.mark.parametrize("steps", [1000, 250, 100, 50, 40, 20, 10])
def test_symmetric_over_asymmetric_effect_is_the_closed_form(pixel, steps):
    x, eps, change = (pixel.noise(1, seed) for seed in range(3))
    times = [-1, *time_grid(steps)]
    for after, t in zip(times[:-1], times[1:], strict=True):
        a, b = pixel.alpha(t), pixel.alpha(after)
        plain = update(x, eps, a, b)
        both = update(x, eps + change, a, b) - plain
        alone = update(x, eps + change, a, b, eps_direction=eps) - plain
        measured = float((both * alone).sum() / (alone * alone).sum())
        assert measured == pytest.approx(schedule.cancellation(a, b), rel=1e-8)


def test_networks_obey_the_closed_form(any_model):
    x, delta = any_model.noise(2, 0), hspace.constant(change_for(any_model))
    shifted, plain = hspace.predictions(any_model, x, 599, delta)
    a, b = any_model.alpha(599), any_model.alpha(399)
    both = update(x, shifted, a, b) - update(x, plain, a, b)
    alone = update(x, shifted, a, b, eps_direction=plain) - update(x, plain, a, b)
    torch.testing.assert_close(both, schedule.cancellation(a, b) * alone, rtol=1e-7, atol=1e-11)


def test_adjacent_steps_cancel_as_the_paper_says(pixel):
    """Theorem 1: (sqrt(1 - alpha_t - beta_t) - sqrt(1 - alpha_t)) / sqrt(1 - beta_t)."""
    a, b = pixel.alpha(500), pixel.alpha(499)
    beta = 1 - a / b
    theorem = (math.sqrt(1 - a - beta) - math.sqrt(1 - a)) / math.sqrt(1 - beta)
    alone = -math.sqrt(b / a) * math.sqrt(1 - a)
    assert schedule.cancellation(a, b) == pytest.approx(theorem / alone, rel=1e-9)


@pytest.mark.parametrize(
    "steps, at_the_top, window",
    [(1000, 0.0101, 0.009), (250, 0.0492, 0.036), (100, 0.1047, 0.087), (50, 0.1894, 0.168)]
    + [(40, 0.2284, 0.206), (20, 0.4063, 0.376), (10, 0.6533, 0.625)],
)
def test_cancellation_has_the_tabulated_values(pixel, steps, at_the_top, window):
    grid = time_grid(steps)
    top = schedule.cancellation(pixel.alpha(grid[-1]), pixel.alpha(grid[-2]))
    assert top == pytest.approx(at_the_top, abs=6e-5)
    whole = schedule.window_cancellation(pixel, steps=steps, t_edit=513)
    assert whole == pytest.approx(window, abs=6e-4)


def test_window_of_one_step_is_the_single_step(pixel):
    one = schedule.cancellation(pixel.alpha(999), pixel.alpha(799))
    assert schedule.window_cancellation(pixel, steps=STEPS, t_edit=999) == pytest.approx(one)
    assert schedule.cancellation(pixel.alpha(0), 1.0) == pytest.approx(1.0)


# --- reading and shifting h


def test_captured_h_is_the_output_of_the_mid_block(any_model):
    kept = []
    handle = any_model.unet.mid_block.register_forward_hook(lambda m, a, out: kept.append(out))
    x = any_model.noise(2, 0)
    with hspace.capture(any_model) as h:
        any_model.epsilon(x, 599)
    handle.remove()
    assert list(h) == [599] and torch.equal(h[599], kept[0])
    assert h[599].shape == (2, *hspace.h_shape(any_model))


def test_time_and_latents_may_come_by_name(pixel):
    inner = copy.copy(pixel)
    inner.unet = pixel.unet.inner
    x = inner.noise(2, 0)
    with hspace.capture(inner) as h:
        inner.unet(x, 7)
        inner.unet(sample=x, timestep=5)
        inner.unet(x, timestep=torch.tensor([7, 7]))
    assert {t: len(rows) for t, rows in h.items()} == {7: 4, 5: 2}
    assert torch.equal(h[7][:2], h[7][2:])


def test_captured_rows_are_those_of_the_latents(pixel):
    x = pixel.noise(5, 0)
    with hspace.capture(pixel) as whole:
        ddim(pixel, x, steps=STEPS, batch=5)
    with hspace.capture(pixel) as parts:
        ddim(pixel, x, steps=STEPS, batch=2)
    assert sorted(parts) == time_grid(STEPS)
    for t in whole:
        torch.testing.assert_close(parts[t], whole[t], rtol=1e-9, atol=1e-11)


def test_capture_sees_the_shift_from_inside_and_not_from_outside(pixel):
    x, change = pixel.noise(1, 0), change_for(pixel)
    with (
        hspace.capture(pixel) as outside,
        hspace.inject(pixel, hspace.constant(change)),
        hspace.capture(pixel) as inside,
    ):
        pixel.epsilon(x, 599)
    torch.testing.assert_close(inside[599] - outside[599], change[None])


def test_only_the_chosen_rows_are_shifted(pixel):
    x, delta = pixel.noise(3, 0), hspace.constant(change_for(pixel))
    plain = pixel.epsilon(x, 599)
    with hspace.inject(pixel, delta):
        everywhere = pixel.epsilon(x, 599)
    with hspace.inject(pixel, delta, rows=[False, True, True]):
        some = pixel.epsilon(x, 599)
    assert torch.equal(some[0], plain[0]) and torch.equal(some[1:], everywhere[1:])
    assert not torch.equal(plain[1:], everywhere[1:])


def test_shifting_some_rows_leaves_the_output_of_the_block_alone(pixel):
    kept, delta = [], hspace.constant(change_for(pixel))
    handle = pixel.unet.mid_block.register_forward_hook(lambda m, a, out: kept.append(out))
    with hspace.inject(pixel, delta, rows=[True, False]):
        pixel.epsilon(pixel.noise(2, 0), 599)
    pixel.epsilon(pixel.noise(2, 0), 599)
    handle.remove()
    assert torch.equal(kept[0], kept[1])


def test_delta_meets_the_chosen_rows_only(pixel):
    def per_sample(h, t):
        assert h.shape[0] == 1
        return torch.ones_like(h)

    with hspace.inject(pixel, per_sample, rows=[False, False, True]):
        pixel.epsilon(pixel.noise(3, 0), 599)


def test_inject_leaves_network_and_inputs_as_they_were(pixel):
    x, change = pixel.noise(2, 0), change_for(pixel)
    before, kept = pixel.epsilon(x, 599), change.clone()
    count = hooks(pixel)
    with hspace.inject(pixel, hspace.constant(change)):
        assert hooks(pixel) > count
        pixel.epsilon(x, 599)
    assert hooks(pixel) == count
    assert torch.equal(pixel.epsilon(x, 599), before) and torch.equal(change, kept)


def test_hooks_go_after_an_exception(pixel):
    def broken(h, t):
        raise KeyError("broken")

    x, count = pixel.noise(1, 0), hooks(pixel)
    with pytest.raises(KeyError, match="broken"):
        hspace.edit(pixel, x, broken, steps=STEPS, t_edit=500)
    with pytest.raises(KeyError, match="outside"), hspace.capture(pixel):
        raise KeyError("outside")
    with pytest.raises(RuntimeError), hspace.inject(pixel, hspace.constant(change_for(pixel))):
        pixel.unet(x[:, :1], torch.tensor([5]))
    assert hooks(pixel) == count
    hspace.edit(pixel, x, hspace.constant(change_for(pixel)), steps=2, t_edit=500)


def test_other_layers_can_be_read_and_shifted(exact):
    generator = exact["celebahq-256"]
    inner = copy.copy(generator)
    inner.unet = generator.unet.inner
    x = inner.noise(2, 0)
    for layer in ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1"):
        shape = hspace.h_shape(inner, layer=layer)
        delta = hspace.constant(models.unit_normal(shape, 0))
        shifted, plain = hspace.predictions(inner, x, 599, delta, layer=layer)
        torch.testing.assert_close(plain, inner.epsilon(x, 599), rtol=1e-10, atol=1e-12)
        assert float((shifted - plain).abs().max()) > 1e-6


def test_per_step_changes_apply_at_their_times_and_near_them(pixel):
    changes = {999: change_for(pixel, 1), 599: change_for(pixel, 2)}
    delta, h = hspace.per_step(changes), torch.zeros(2, *hspace.h_shape(pixel)).double()
    for t, source in ((999, 999), (820, 999), (780, 599), (10, 599)):
        assert torch.equal(delta(h, t), changes[source])


def test_attributes_add_up_with_one_over_root_n(pixel):
    h = torch.zeros(2, *hspace.h_shape(pixel)).double()
    a, b = change_for(pixel, 1), change_for(pixel, 2)
    both = hspace.combine({hspace.constant(a): 2.0, hspace.constant(b): -0.5})
    torch.testing.assert_close(both(h, 0), (2 * a - 0.5 * b) / math.sqrt(2))
    torch.testing.assert_close(hspace.combine({hspace.constant(a): 2.0})(h, 0), 2 * a)


# --- refusals


def test_second_injection_is_refused_and_the_first_goes_on(pixel):
    x, delta = pixel.noise(1, 0), hspace.constant(change_for(pixel))
    with hspace.inject(pixel, delta):
        first = pixel.epsilon(x, 599)
        with pytest.raises(ValueError, match=r"already.*combine"), hspace.inject(pixel, delta):
            pass
        assert torch.equal(pixel.epsilon(x, 599), first)
    with hspace.inject(pixel, delta):
        assert torch.equal(pixel.epsilon(x, 599), first)


@pytest.mark.parametrize("shape", [(16, 4, 4), (8, 8, 8), (5, 16, 8, 8)])
def test_change_of_another_shape_is_refused(pixel, shape):
    with pytest.raises(ValueError, match=r"Δh has shape.*\(16, 8, 8\)"):
        hspace.edit(
            pixel, pixel.noise(2, 0), hspace.constant(torch.ones(shape)), steps=2, t_edit=500
        )


def test_change_of_another_model_is_refused(pixel, tiny):
    other = copy.copy(pixel)
    other.unet = copy.deepcopy(pixel.unet)
    other.unet.inner.conv_in.bias.data += 1
    block = trained.DeltaBlock(other)
    for delta in (block, hspace.combine({block: 1.0})):
        with pytest.raises(ValueError, match=other.weight_hash):
            hspace.edit(pixel, pixel.noise(1, 0), delta, steps=2, t_edit=500)


def test_overlap_of_edit_and_boost_is_warned_about_and_done(pixel):
    x, change = pixel.noise(3, 0), change_for(pixel)
    delta, run = hspace.constant(change), {"t_edit": 300, "t_boost": 700}
    with pytest.warns(UserWarning, match="t_boost = 700 lies above t_edit = 300"):
        edited = hspace.edit(pixel, x, delta, steps=STEPS, **run)
    assert apart(edited, two_pass_edit(pixel, x, change, **run)) < 1e-12
    with pytest.warns(UserWarning, match="t_boost"):
        later = hspace.edit(pixel, x[1:], delta, steps=STEPS, first=1, batch=2, **run)
    assert apart(later, edited[1:]) < 1e-10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(pixel, value):
    x, delta = pixel.noise(1, 0), hspace.constant(change_for(pixel))
    with pytest.raises(ValueError, match="strength.*finite"):
        hspace.edit(pixel, x, delta, steps=2, t_edit=500, strength=value)
    with pytest.raises(ValueError, match="strength.*finite"):
        hspace.combine({delta: value})
    with pytest.raises(ValueError, match="finite"):
        hspace.constant(value * torch.ones(16, 8, 8))
    with pytest.raises(ValueError, match=r"changes\[3\].*finite"):
        hspace.per_step({3: value * torch.ones(16, 8, 8)})


@pytest.mark.parametrize("value", ["big", [0.3], torch.tensor([0.3, 0.6]), None])
def test_a_strength_is_one_number(pixel, value):
    delta = hspace.constant(change_for(pixel))
    with pytest.raises(ValueError, match="strength = .*give one finite number"):
        hspace.edit(pixel, pixel.noise(1, 0), delta, steps=2, t_edit=500, strength=value)


@pytest.mark.parametrize(
    ("delta", "given"),
    [("glasses", "'glasses'"), (Path("glasses"), "'glasses'"), (torch.ones(16, 8, 8), "a Tensor")],
    ids=["text", "path", "tensor"],
)
def test_what_is_no_change_is_refused_with_the_ways_to_one(pixel, delta, given):
    x, run = pixel.noise(1, 0), {"steps": 2, "t_edit": 500}
    calls = [
        lambda: hspace.edit(pixel, x, delta, **run),
        lambda: hspace.asyrp(pixel, x, delta, **run),
        lambda: hspace.sufficient(pixel, x, delta, unchanged, **run),
        lambda: editing.edit_each(pixel, x, delta, torch.ones(1), **run),
        lambda: hspace.combine({delta: 1.0}),
        lambda: hspace.inject(pixel, delta).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"delta is {given}; .*trained.load.*hspace.constant"):
            call()


def unchanged(images):
    return torch.zeros(len(images), dtype=torch.bool)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"enough": "glasses"}, r"enough is 'glasses'; .*fits.Enough"),
        ({"enough": lambda images: True}, "enough returned True for one image"),
        ({"enough": lambda images: images.mean()}, "enough returned tensor.* one boolean for each"),
        ({"strength": 0.3}, r"strength = 0.3: .*levels"),
    ],
    ids=["text", "one bool", "a number", "strength"],
)
def test_a_search_for_the_strength_needs_a_question_and_no_strength(pixel, wrong, message):
    delta = hspace.constant(change_for(pixel))
    run = {"enough": unchanged, "steps": 2, "t_edit": 500} | wrong
    with pytest.raises(ValueError, match=message):
        hspace.sufficient(pixel, pixel.noise(1, 0), delta, run.pop("enough"), **run)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"t_edit": -1}, "t_edit = -1.*0 ... 1000"),
        ({"t_edit": 1001}, "t_edit = 1001"),
        ({"t_edit": math.nan}, "t_edit = nan"),
        ({"t_boost": -5}, "t_boost = -5"),
        ({"t_boost": 2000}, "t_boost = 2000"),
        ({"trained_steps": 0}, "trained_steps = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"prompt": "ab"}, "unconditional"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, "latents have shape"),
    ],
)
def test_options_out_of_range_are_refused(pixel, wrong, message):
    run = {"latents": pixel.noise(1, 0), "steps": 2, "t_edit": 500} | wrong
    with pytest.raises(ValueError, match=message):
        hspace.edit(pixel, run.pop("latents"), hspace.constant(change_for(pixel)), **run)


def test_empty_sets_of_changes_are_refused():
    with pytest.raises(ValueError, match="strengths is empty"):
        hspace.combine({})
    with pytest.raises(ValueError, match="changes is empty"):
        hspace.per_step({})


def test_model_without_a_mid_block_is_refused(gaussian):
    with pytest.raises(ValueError, match="no mid_block.*UNet2DModel"), hspace.capture(gaussian):
        pass
    with pytest.raises(ValueError, match="no mid_block"):
        hspace.edit(gaussian, gaussian.noise(1, 0), lambda h, t: h, steps=2, t_edit=500)


def test_compiled_network_is_refused(pixel):
    twin = copy.copy(pixel)
    twin.unet = copy.deepcopy(pixel.unet)
    twin.unet.compile()
    with pytest.raises(ValueError, match="fast=True"), hspace.capture(twin):
        pass


@pytest.mark.parametrize("rows", [[True, False], [4], [-5]])
def test_rows_that_do_not_fit_are_refused(pixel, rows):
    delta = hspace.constant(change_for(pixel))
    with pytest.raises(ValueError, match="rows"), hspace.inject(pixel, delta, rows=rows):
        pixel.epsilon(pixel.noise(3, 0), 599)


def test_rows_at_different_times_are_refused(pixel):
    with pytest.raises(ValueError, match="same time"), hspace.capture(pixel):
        pixel.epsilon(pixel.noise(2, 0), torch.tensor([599, 399]))


# --- ways to a change: trained


def test_block_has_the_published_number_of_weights(pixel):
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 96),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    generator = models.Generator(unet, pixel.alphas, (3, 8, 8))
    block = trained.DeltaBlock(generator)
    assert sum(p.numel() for p in block.parameters()) == 31_200


def test_block_is_its_formula(pixel):
    block, h = trained.DeltaBlock(pixel), torch.randn(2, *hspace.h_shape(pixel)).double()
    unet = pixel.unet.inner
    temb = unet.time_embedding(unet.time_proj(torch.tensor([599])).double())[0]

    def swish(v):
        return v * torch.sigmoid(v)

    def mix(convolution, v):
        weight = convolution.weight[:, :, 0, 0]
        return torch.einsum("oc,nchw->nohw", weight, v) + convolution.bias[:, None, None]

    y = mix(block.first, h) + (block.time.weight @ swish(temb) + block.time.bias)[:, None, None]
    grouped = y.reshape(2, 8, -1)  # 8 groups of two channels
    spread = grouped.var(-1, unbiased=False, keepdim=True)
    y = ((grouped - grouped.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()).reshape(y.shape)
    torch.testing.assert_close(block(h, 599), mix(block.last, swish(y)), rtol=1e-9, atol=1e-11)
    assert float((block(h, 599) - block(h, 199)).detach().abs().max()) > 1e-6


def test_block_start_depends_on_its_seed_alone(pixel):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = (trained.DeltaBlock(pixel, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.first.weight, b.first.weight)
    assert not torch.equal(a.first.weight, c.first.weight)


class Free(torch.nn.Module):
    """Δh itself as parameters, one for each of some times: what a training does to it is plain."""

    def __init__(self, generator, times):
        super().__init__()
        self.times = times
        start = torch.stack([0.2 * change_for(generator, t) for t in times])
        self.change = torch.nn.Parameter(start)

    def forward(self, h, t):
        return self.change[self.times.index(t)]


def test_directional_loss_has_the_form_of_the_released_code():
    cosine = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(2), math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(trained.directional_loss(cosine), expected)


def toy_encode(images):
    """Four smooth numbers of an image, in place of an image encoder."""
    return torch.stack([images.mean((1, 2, 3)), *images.square().mean((2, 3)).T], 1)


TOWARDS = torch.tensor([1.0, 0.2, -0.3, 0.1], dtype=torch.float64)
TRAINING = {"steps": STEPS, "t_edit": 600, "batch": 2, "rate": 0.05}


def test_training_takes_one_descent_step_at_each_time(pixel):
    x = pixel.noise(2, 0)
    ours = Free(pixel, [999, 799])
    change = ours.change.detach().clone()
    history = trained.train(pixel, ours, x, toy_encode, TOWARDS, **TRAINING)

    clean, edited, plain, seen = ddim(pixel, x, steps=STEPS), x, x, []
    for i, (t, after) in enumerate(((999, 799), (799, 599))):
        a, b = pixel.alpha(t), pixel.alpha(after)
        own = change[i].clone().requires_grad_()
        with hspace.inject(pixel, lambda h, t, own=own: own):
            eps = pixel.epsilon(edited, t)
        target = predicted(plain, pixel.epsilon(plain, t), a)
        image = predicted(edited, eps, a)
        moved = toy_encode(image) - toy_encode(clean)
        cosine = (moved @ TOWARDS) / (moved.norm(dim=1) * TOWARDS.norm())
        clip = -((1 + cosine) / 2).log()
        loss = 0.8 * clip.mean() + 3.0 * (image - target).abs().mean()
        change[i] -= 0.05 * torch.autograd.grad(loss, own)[0]
        seen.append(float(cosine.detach().mean()))
        eps_plain = pixel.epsilon(edited, t)
        edited = math.sqrt(b) * image.detach() + math.sqrt(1 - b) * eps_plain
        plain = update(plain, pixel.epsilon(plain, t), a, b)
    torch.testing.assert_close(ours.change.detach(), change, rtol=1e-9, atol=1e-11)
    assert history[0]["cosine"] == pytest.approx(sum(seen) / 2, rel=1e-5)


def test_training_turns_the_change_of_fresh_samples_towards_the_text(pixel):
    run = {"steps": STEPS, "t_edit": 500, "batch": 4, "recon_weight": 0.1, "rate": 0.5}
    block, fresh = trained.DeltaBlock(pixel), pixel.noise(8, 2)

    def cosine():
        edit = hspace.asyrp(pixel, fresh, block, steps=STEPS, t_edit=500)
        moved = toy_encode(edit.edited) - toy_encode(edit.reconstruction)
        return float(torch.cosine_similarity(moved, TOWARDS[None]).mean())

    before, x = cosine(), pixel.noise(16, 1)
    history = trained.train(pixel, block, x, toy_encode, TOWARDS, passes=3, **run)
    assert cosine() > before + 0.4
    assert sum(row["loss"] for row in history[-4:]) < sum(row["loss"] for row in history[:4])


def test_learning_rate_falls_tenfold_after_three_passes(pixel):
    x, delta, found = pixel.noise(1, 0), Free(pixel, [999]), []

    def constant_gradient(images):
        found.append(delta.change.detach().clone())
        return toy_encode(images)

    run = {"steps": STEPS, "t_edit": 999, "rate": 1e-4}
    trained.train(pixel, delta, x, constant_gradient, TOWARDS, passes=5, **run)
    found = [*found[::2], delta.change.detach()]
    moves = [float((b - a).norm()) for a, b in zip(found[:-1], found[1:], strict=True)]
    assert moves[1] / moves[0] == pytest.approx(1, rel=0.05)
    assert moves[3] / moves[2] == pytest.approx(0.1, rel=0.05)


def test_training_text_models_follows_prompt_and_decoder(text):
    block = trained.DeltaBlock(text)
    before = block.last.weight.detach().clone()
    history = trained.train(
        text, block, text.noise(2, 0), toy_encode, TOWARDS, prompt="ab", guidance=2.0, **TRAINING
    )
    assert len(history) == 1 and not torch.equal(before, block.last.weight)


def test_stopped_training_goes_on_to_the_same_weights(pixel, tmp_path):
    x, file = pixel.noise(5, 0), tmp_path / "smile.safetensors"
    whole, part, rest = (trained.DeltaBlock(pixel, seed=s) for s in (0, 0, 9))
    expected = trained.train(pixel, whole, x, toy_encode, TOWARDS, passes=2, **TRAINING)
    calls = []

    def stopping(images):
        calls.append(len(images))
        if len(calls) > 18:
            raise KeyboardInterrupt
        return toy_encode(images)

    with pytest.raises(KeyboardInterrupt):
        trained.train(pixel, part, x, stopping, TOWARDS, passes=2, checkpoint=file, **TRAINING)
    again = {"passes": 2, "checkpoint": file, **TRAINING}
    history = trained.train(pixel, rest, x, toy_encode, TOWARDS, **again)
    assert history == expected and len(history) == 6
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True)
    )
    assert trained.train(pixel, part, x, toy_encode, TOWARDS, **again) == expected
    h = torch.ones(1, *hspace.h_shape(pixel)).double()
    assert torch.equal(trained.load(pixel, file)(h, 599), whole(h, 599))
    with pytest.raises(ValueError, match="another training"):
        trained.train(pixel, rest, x, toy_encode, -TOWARDS, **again)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["smile.safetensors"]


def test_saved_block_is_refused_by_other_models_and_when_damaged(pixel, text, tmp_path):
    file = trained.save(trained.DeltaBlock(pixel), tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=text.weight_hash):
        trained.load(text, file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"f.safetensors is damaged .*hspace holds .*glasses"):
        trained.load(pixel, file)
    file.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        trained.load(pixel, file)
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds other tensors than those of an f_t"):
        trained.load(pixel, tmp_path / "other.safetensors")
    for name in ("glasses", tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match=rf"no file '{name}'.*hspace holds .*glasses"):
            trained.load(pixel, name)
    with pytest.raises(ValueError, match=r"path is a Generator; give load\(generator, path\)"):
        trained.load("models/hspace/glasses.safetensors", pixel)


def test_training_refuses_what_cannot_be_trained(pixel):
    x, block = pixel.noise(2, 0), trained.DeltaBlock(pixel)
    with pytest.raises(ValueError, match="t_edit = 1000"):
        trained.train(pixel, block, x, toy_encode, TOWARDS, **TRAINING | {"t_edit": 1000})
    with pytest.raises(ValueError, match="changes no image"):
        blind = lambda images: 1 + 0 * toy_encode(images)  # noqa: E731
        trained.train(pixel, block, x, blind, TOWARDS, **TRAINING)
    with pytest.raises(ValueError, match="not finite at t = 999.*rate"):
        trained.train(pixel, block, x, lambda v: math.nan * toy_encode(v), TOWARDS, **TRAINING)


# --- ways to a change: means and linear algebra


def test_means_are_over_the_edited_samples_and_then_over_the_times(pixel):
    x, block = pixel.noise(3, 0), trained.DeltaBlock(pixel)
    run = {"steps": STEPS, "t_edit": 500}
    found = means.mean_over_samples(pixel, x, block, **run)
    with hspace.capture(pixel) as h:
        hspace.edit(pixel, x, block, **run)
    assert sorted(found.per_step) == [599, 799, 999]
    for t, mean in found.per_step.items():
        shifted, plain = h[t].chunk(2)  # the first tap sees h as it was
        change = torch.stack([block(row[None], t)[0] for row in plain]).mean(0).detach()
        torch.testing.assert_close(mean, change, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(shifted, plain, rtol=1e-9, atol=1e-11)
    expected = sum(found.per_step.values()) / 3
    torch.testing.assert_close(found.overall, expected)
    with pytest.raises(ValueError, match="no step was edited"):
        means.mean_over_samples(pixel, x, block, steps=STEPS, t_edit=1000)


def test_mean_difference_points_from_without_to_with():
    h = {599: torch.tensor([[1.0], [2.0], [6.0], [8.0]]).view(4, 1, 1, 1)}
    v = means.mean_difference(h, [False, False, True, True])
    assert float(v[599]) == 5.5
    with pytest.raises(ValueError, match="all alike"):
        means.mean_difference(h, [True] * 4)
    with pytest.raises(ValueError, match="3 labels"):
        means.mean_difference(h, [True, False, True])


def test_principal_components_find_planted_directions():
    draws = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(24, 2, generator=draws, dtype=torch.float64)).Q
    amounts = torch.randn(4000, 2, generator=draws, dtype=torch.float64) * torch.tensor([5.0, 2.0])
    noise = 0.01 * torch.randn(4000, 24, generator=draws, dtype=torch.float64)
    h = (7.0 + amounts @ planted.T + noise).view(4000, 6, 2, 2)
    found, spread = bases.principal_components(h, 2)
    overlap = (found.flatten(1) @ planted).abs()
    torch.testing.assert_close(overlap, torch.eye(2).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(spread, amounts.std(0), rtol=0.01, atol=0)
    assert all(float(v.flatten()[v.abs().argmax()]) > 0 for v in found)
    with pytest.raises(ValueError, match="k = 4000"):
        bases.principal_components(h, 4000)


def test_projection_removes_the_protected_part_and_nothing_else():
    v, a, b = (models.unit_normal((4, 2, 2), i).double() for i in range(3))
    kept = bases.project(v, [a, b, a + b])
    assert max(abs(float((kept * w).sum())) for w in (a, b)) < 1e-12
    removed = (v - kept).flatten()
    span = torch.stack([a.flatten(), b.flatten()], 1)
    residual = span @ torch.linalg.lstsq(span, removed[:, None]).solution - removed[:, None]
    assert float(residual.abs().max()) < 1e-12
    torch.testing.assert_close(bases.project(kept, [a, b]), kept)


def test_singular_basis_is_that_of_the_full_jacobian():
    mix = models.unit_normal((5, 6), 0).double() * torch.tensor([9, 5, 2, 1, 0.5, 0.1]).double()

    def function(x):
        return torch.tanh(mix @ x.flatten() / 20).view(5, 1)

    point = models.unit_normal((2, 3), 1).double()
    basis = bases.singular_basis(function, point, 3, tolerance=1e-10)
    jacobian = torch.func.jacrev(function)(point).reshape(5, 6)
    left, values, right = torch.linalg.svd(jacobian)
    torch.testing.assert_close(basis.values, values[:3], rtol=1e-9, atol=0)
    sign = (basis.inputs.flatten(1) * right[:3]).sum(1).sign()[:, None]
    torch.testing.assert_close(basis.inputs.flatten(1), sign * right[:3], rtol=0, atol=1e-8)
    torch.testing.assert_close(basis.outputs.flatten(1), sign * left.T[:3], rtol=0, atol=1e-8)
    assert all(float(v.flatten()[v.abs().argmax()]) > 0 for v in basis.inputs)
    with pytest.raises(ValueError, match="k = 7"):
        bases.singular_basis(function, point, 7)
    with pytest.warns(UserWarning, match="still turns"):
        bases.singular_basis(function, point, 2, iterations=1, tolerance=1e-12)


@pytest.fixture(scope="module")
def smooth(tiny):
    """A model with forward-mode derivatives."""
    folder = tiny["celebahq-256"]
    return models.load(folder, device="cpu", dtype=torch.float64, differentiable=True)


def test_jacobian_directions_change_the_prediction_by_their_values(smooth):
    x = smooth.noise(1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        basis = bases.jacobian_directions(smooth, x, 599, k=2, iterations=30)
    assert basis.inputs.shape == (2, *hspace.h_shape(smooth))
    assert basis.values[0] > basis.values[1]
    size, other = 1e-4, models.unit_normal(basis.inputs[0].shape, 5).double()
    stretch = []
    for v in (*basis.inputs, other / other.norm()):
        sides = (
            hspace.predictions(smooth, x, 599, hspace.constant(s * v))[0] for s in (size, -size)
        )
        stretch.append((next(sides) - next(sides))[0] / (2 * size))
    for i in range(2):
        expected = basis.values[i] * basis.outputs[i]
        torch.testing.assert_close(stretch[i], expected, rtol=0, atol=1e-6)
    assert float(stretch[2].norm()) < float(basis.values[1])


def test_pullback_basis_moves_h_by_its_values(smooth):
    x = smooth.noise(1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        basis = bases.pullback_basis(smooth, x, 599, k=2, iterations=20)
    moved = []
    for s in (1e-4, -1e-4):
        with hspace.capture(smooth) as h:
            smooth.epsilon(x + s * basis.inputs, 599)
        moved.append(h[599])
    difference = (moved[0] - moved[1]) / 2e-4
    expected = basis.values.view(2, 1, 1, 1) * basis.outputs
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-6)


def test_models_without_forward_mode_say_how_to_get_it(pixel):
    inner = copy.copy(pixel)
    inner.unet = pixel.unet.inner
    with pytest.raises(ValueError, match="differentiable=True"):
        bases.jacobian_directions(inner, inner.noise(1, 0), 599)


# --- the schedule


def squared(a, b):
    return (a - b).square().mean((1, 2, 3))


def test_curves_are_mean_distances_along_the_inversion(pixel):
    images = 0.3 * pixel.noise(5, 0).tanh()
    found = schedule.curves(pixel, images, squared, steps=STEPS, batch=2)
    assert found.times.tolist() == time_grid(STEPS)
    for i, t in enumerate(time_grid(STEPS)):
        x = invert(pixel, images, steps=STEPS, stop=t, refine=0)
        clean = predicted(x, pixel.epsilon(x, t), pixel.alpha(t))
        assert float(found.prediction[i]) == pytest.approx(float(squared(images, clean).mean()))
        assert float(found.noisy[i]) == pytest.approx(float(squared(images, x).mean()))


def test_curves_of_latent_models_compare_images(text):
    images = torch.zeros(2, *text.image_shape).double()
    found = schedule.curves(text, images, squared, steps=3, prompt="ab")
    top = invert(text, images, steps=3, prompt="ab", refine=0)
    expected = float(squared(images, text.decode(top)).mean())
    assert float(found.noisy[-1]) == pytest.approx(expected)


def linear_curves(scale=1.0):
    times = torch.arange(1000, dtype=torch.float64)
    return schedule.Curves(times, scale * times / 999, scale * (times / 999).sqrt())


@pytest.mark.parametrize("scale", [1.0, 0.02, 300.0])
def test_times_are_the_first_at_the_threshold_in_any_unit_of_distance(scale):
    found = linear_curves(scale)
    assert schedule.t_edit(found) == math.ceil(0.29 * 999)
    assert schedule.t_edit(found, cosine=0.5) == math.ceil(0.145 * 999)
    assert schedule.t_boost(found) == math.ceil(0.85**2 * 999)
    assert schedule.t_edit(found, share=1.0) == 999


def test_coarse_curves_give_nearly_the_times_of_fine_ones():
    fine = linear_curves()
    coarse = schedule.Curves(*(part[time_grid(21)] for part in fine))
    assert schedule.t_edit(coarse) == schedule.t_edit(fine)
    assert abs(schedule.t_boost(coarse) - schedule.t_boost(fine)) <= 1


def test_published_thresholds_lie_between_their_tabulated_neighbours():
    """Six points of the published CelebA-HQ curves; their own rule gives 538 and 167."""
    times = torch.tensor([100, 200, 300, 400, 600, 999.0])
    prediction = torch.tensor([0.043, 0.103, 0.139, 0.185, 0.443, 1.145])
    noisy = torch.tensor([0.976, 1.252, 1.325, 1.355, 1.378, 1.388])
    found = schedule.Curves(times, prediction, noisy)
    assert 500 < schedule.t_edit(found, share=0.33 / 1.145) < 545
    assert 160 < schedule.t_boost(found, share=1.2 / 1.388) < 190


@pytest.mark.parametrize("value", [0.0, -0.2, 1.01, math.nan])
def test_shares_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="share"):
        schedule.t_boost(linear_curves(), share=value)
    with pytest.raises(ValueError, match="cosine"):
        schedule.t_edit(linear_curves(), cosine=value)


def test_cancellation_refuses_a_step_upwards_and_an_empty_window(pixel):
    with pytest.raises(ValueError, match="alpha < alpha'"):
        schedule.cancellation(0.9, 0.5)
    with pytest.raises(ValueError, match="t_edit = 1000"):
        schedule.window_cancellation(pixel, steps=STEPS, t_edit=1000)
