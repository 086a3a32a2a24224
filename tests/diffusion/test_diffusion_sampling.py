"""Laws of DDIM sampling and inversion."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from lib.diffusion import models, sampling

LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAFE = {"clip_sample": False, "set_alpha_to_one": True}


def alphas_of(betas):
    return torch.cumprod(1 - DDPMScheduler(**betas).betas.double(), 0).tolist() + [1.0]


def test_grid_of_all_steps_is_every_training_time():
    assert sampling.time_grid(1000) == list(range(1000))
    assert sampling.time_grid(50, 50) == list(range(50))


def test_grid_has_the_edit_steps_of_the_paper():
    grid = sampling.time_grid(40)
    counts = [sum(t >= edge for t in grid) for edge in (513, 461, 321)]
    assert counts == [19, 22, 27] and sum(t < 167 for t in grid) == 7
    assert grid[0] == 0 and grid[-1] == 999
    assert sampling.time_grid(1) == [999]


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, "3"])
def test_steps_outside_the_schedule_are_refused(gaussian, steps):
    with pytest.raises(ValueError, match=r"steps.*1 \.\.\. 1000"):
        sampling.ddim(gaussian, gaussian.noise(1, 0), steps=steps)


def test_guidance_that_is_not_finite_is_refused(gaussian):
    with pytest.raises(ValueError, match="guidance"):
        sampling.ddim(gaussian, gaussian.noise(1, 0), steps=2, guidance=float("nan"))


@pytest.mark.parametrize("betas", [LINEAR, SCALED])
@pytest.mark.parametrize("steps", [20, 50, 1000])
def test_each_update_equals_the_library_step(betas, steps):
    scheduler = DDIMScheduler(**betas, **SAFE)
    scheduler.set_timesteps(steps)
    alphas = alphas_of(betas)
    x, eps, noise = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps.tolist()[:: max(1, steps // 50)]:
        after = max(t - 1000 // steps, -1)
        ours = sampling.update(x, eps, alphas[t], alphas[after])
        torch.testing.assert_close(
            ours, scheduler.step(eps, t, x).prev_sample, atol=1e-5, rtol=1e-5
        )
        ours = sampling.update(x, eps, alphas[t], alphas[after], eta=1.0, noise=noise)
        if after >= 0:
            theirs = scheduler.step(eps, t, x, eta=1.0, variance_noise=noise).prev_sample
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_whole_run_equals_the_library_run(gaussian):
    scheduler = DDIMScheduler(**LINEAR, **SAFE)
    scheduler.set_timesteps(1000)
    start = gaussian.noise(2, 5)
    ours = sampling.ddim(gaussian, start, steps=1000)
    x = start
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(gaussian.epsilon(x, t), t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


def test_eta_one_has_the_ancestral_variance():
    alphas = alphas_of(LINEAR)
    library = DDPMScheduler(**LINEAR)
    for t in (1, 10, 100, 500, 999):
        sigma = sampling.deviation(alphas[t], alphas[t - 1], 1.0)
        assert sigma**2 == pytest.approx(float(library._get_variance(t)), rel=1e-3)


def test_stochastic_step_adds_noise_of_that_variance_and_keeps_the_mean(gaussian):
    x = gaussian.noise(1, 0).expand(1500, -1, -1, -1)
    run = {"steps": 20, "start": 525, "stop": 473}
    after = sampling.ddim(gaussian, x, eta=1.0, batch=1500, **run)
    a, b = gaussian.alpha(525), gaussian.alpha(473)
    beta = (1 - b) / (1 - a) * (1 - a / b)
    assert float(after.var(0).mean()) == pytest.approx(beta, rel=0.03)
    eps = gaussian.epsilon(x[:1], 525)
    clean = (x[0] - (1 - a) ** 0.5 * eps[0]) / a**0.5
    mean = b**0.5 * clean + (1 - b - beta) ** 0.5 * eps[0]
    assert float((after.mean(0) - mean).abs().max()) < 5 * (beta / 1500) ** 0.5


def test_ancestral_sampling_reaches_the_data_distribution(gaussian):
    x = sampling.ddim(gaussian, gaussian.noise(400, 1), steps=200, eta=1.0, seed=3, batch=400)
    assert float(x.mean()) == pytest.approx(gaussian.mean, abs=0.03)
    assert float(x.std()) == pytest.approx(gaussian.spread, rel=0.05)


def exact_flow(generator, x, t_from, t_to):
    """Probability-flow solution for Gaussian data: (x - centre) / deviation is conserved."""
    ratio = (generator.variance(t_to) / generator.variance(t_from)).sqrt()
    return generator.centre(t_to) + ratio * (x - generator.centre(t_from))


def test_ddim_converges_to_the_exact_flow_at_first_order(gaussian):
    x = gaussian.noise(2, 0)
    exact = exact_flow(gaussian, x, 999, -1)
    errors = [
        float((sampling.ddim(gaussian, x, steps=s) - exact).abs().max()) for s in (125, 250, 500)
    ]
    assert errors[2] < 0.01
    assert 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4


def test_inversion_converges_to_the_exact_flow(gaussian):
    images = torch.full((1, 1, 4, 4), 0.6, dtype=torch.float64)
    exact = exact_flow(gaussian, images, -1, 999)
    errors = [
        float((sampling.invert(gaussian, images, steps=s) - exact).abs().max()) for s in (250, 500)
    ]
    assert errors[1] < 0.02 and errors[1] < 0.6 * errors[0]


def test_sampling_undoes_inversion(gaussian, pixel, latent):
    images = torch.linspace(-0.9, 0.9, 16, dtype=torch.float64).view(1, 1, 4, 4)
    errors = []
    for steps in (50, 500):
        back = sampling.ddim(gaussian, sampling.invert(gaussian, images, steps=steps), steps=steps)
        errors.append(float((back - images).abs().max()))
    assert errors[1] < 0.02 and errors[1] < errors[0] / 7
    exact = sampling.invert(gaussian, images, steps=50, refine=100)
    assert float((sampling.ddim(gaussian, exact, steps=50) - images).abs().max()) < 1e-9
    for generator, text in ((pixel, {}), (latent, {"prompt": "a face"})):
        clean = 0.3 * generator.noise(2, 4)
        up = sampling.invert(generator, clean, steps=10, encode=False, refine=12, **text)
        down = sampling.ddim(generator, up, steps=10, decode=False, **text)
        torch.testing.assert_close(down, clean, atol=1e-3, rtol=0)


def test_inversion_sees_the_lower_time_of_each_pair(gaussian):
    seen = []
    images = gaussian.noise(1, 0).clamp(-1, 1)
    sampling.invert(gaussian, images, steps=4, callback=lambda *step: seen.append(step))
    assert [t for _, t, _, _ in seen] == [-1, 0, 333, 666]
    assert torch.equal(seen[0][0], images)
    for x, t, eps, _ in seen:
        torch.testing.assert_close(eps, gaussian.epsilon(x, max(t, 0)))


def test_start_and_stop_compose(gaussian, pixel):
    for generator, eta in ((gaussian, 0.0), (pixel, 1.0)):
        x = generator.noise(2, 1)
        options = {"steps": 20, "eta": eta, "seed": 4}
        middle = sampling.ddim(generator, x, stop=500, **options)
        whole = sampling.ddim(generator, x, **options)
        assert torch.equal(sampling.ddim(generator, middle, start=500, **options), whole)
    image = torch.full((1, 1, 4, 4), 0.2)
    middle = sampling.invert(gaussian, image, steps=20, stop=500)
    assert torch.equal(
        sampling.invert(gaussian, middle, steps=20, start=500),
        sampling.invert(gaussian, image, steps=20),
    )


def test_start_and_stop_are_taken_at_the_nearest_grid_point(gaussian):
    times = []
    sampling.ddim(
        gaussian,
        gaussian.noise(1, 0),
        steps=5,
        start=700,
        stop=300,
        callback=lambda x, t, eps, rows: times.append(t),
    )
    assert times == [749, 499]  # the grid is 0, 249, 499, 749, 999; 300 is nearest to 249
    x = gaussian.noise(1, 0)
    assert torch.equal(sampling.ddim(gaussian, x, steps=5, start=500, stop=500), x)


def test_stop_at_zero_is_one_step_short_of_the_image(gaussian):
    x = gaussian.noise(1, 0)
    short = sampling.ddim(gaussian, x, steps=10, stop=0)
    eps = gaussian.epsilon(short, 0)
    image = sampling.predicted(short, eps, gaussian.alpha(0))
    torch.testing.assert_close(sampling.ddim(gaussian, x, steps=10), image)


def test_replaced_step_sees_every_pair_and_takes_over(gaussian):
    pairs = []

    def keep(x, t, t_next, eps):
        pairs.append((t, t_next))
        return x + 1

    x = gaussian.noise(1, 0)
    after = sampling.ddim(gaussian, x, steps=5, step=keep)
    torch.testing.assert_close(after, x + 5)
    assert pairs == [(999, 749), (749, 499), (499, 249), (249, 0), (0, -1)]
    with pytest.raises(ValueError, match="eta"):
        sampling.ddim(gaussian, x, steps=5, step=keep, eta=0.5)


def test_replaced_prediction_may_differ_for_image_and_direction(pixel):
    x, run = pixel.noise(5, 0), {"steps": 4, "eta": 0.5, "seed": 3, "batch": 2}
    seen = []

    def pair(x, t, **text):
        eps = pixel.epsilon(x, t, **text)
        return 0.9 * eps, eps

    ours = sampling.ddim(pixel, x, predict=pair, callback=lambda *a: seen.append(a), **run)
    for x, t, eps, _ in seen:
        torch.testing.assert_close(eps, 0.9 * pixel.epsilon(x, t))
    x = pixel.noise(5, 0)
    for t, after in sampling.downward(pixel, 4):
        a, b = pixel.alpha(t), pixel.alpha(after)
        eps, sigma = pixel.epsilon(x, t), sampling.deviation(a, b, 0.5)
        clean = (x - (1 - a) ** 0.5 * 0.9 * eps) / a**0.5
        x = b**0.5 * clean + (1 - b - sigma**2) ** 0.5 * eps
        x = x + sigma * sampling.step_noise(pixel, range(5), 3, t)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    alone = sampling.ddim(pixel, pixel.noise(5, 0), predict=pixel.epsilon, **run)
    assert torch.equal(alone, sampling.ddim(pixel, pixel.noise(5, 0), **run))
    with pytest.raises(ValueError, match="predict.*step="):
        sampling.ddim(pixel, x, predict=pair, step=lambda x, *_: x, steps=4)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_pairs_upwards_are_those_downwards_in_reverse(gaussian, steps):
    down, up = sampling.downward(gaussian, steps), sampling.upward(gaussian, steps)
    assert down == [(b, a) for a, b in up[::-1]]
    assert [t for t, _ in down][::-1] == sampling.time_grid(steps) and down[-1][1] == sampling.CLEAN
    part = sampling.downward(gaussian, steps, start=600, stop=300)
    assert part == [(b, a) for a, b in sampling.upward(gaussian, steps, start=300, stop=600)[::-1]]
    with pytest.raises(ValueError, match="s = 1000"):
        sampling.nearest([0, 500, 999], 1000, "s")


def test_asymmetric_update_shifts_the_prediction_alone(gaussian):
    x, eps, shift = torch.randn(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    a, b = gaussian.alpha(700), gaussian.alpha(600)
    moved = sampling.update(x, eps + shift, a, b, eps_direction=eps) - sampling.update(x, eps, a, b)
    torch.testing.assert_close(moved, -((b / a) ** 0.5) * (1 - a) ** 0.5 * shift)


def test_callback_sees_the_latents_before_each_step(gaussian):
    seen = []
    x = gaussian.noise(3, 0)
    sampling.ddim(
        gaussian,
        x,
        steps=4,
        batch=2,
        callback=lambda x, t, eps, rows: seen.append((x, t, eps, rows)),
    )
    assert torch.equal(torch.cat([seen[0][0], seen[4][0]]), x)
    assert [s[3] for s in seen] == [slice(0, 2)] * 4 + [slice(2, 3)] * 4
    assert all(torch.equal(eps, gaussian.epsilon(part, t)) for part, t, eps, _ in seen)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_image_of_a_seed_does_not_depend_on_the_batch(pixel, eta):
    options = {"steps": 10, "eta": eta, "seed": 7, "batch": 64}
    together = sampling.ddim(pixel, pixel.noise(64, 3), **options)
    alone = sampling.ddim(pixel, pixel.noise(1, 3, first=41), first=41, **options)
    assert 0.05 < float(together.std()) < 5
    assert float((together[41] - alone[0]).abs().max()) < 1e-3
    assert float((together[40] - alone[0]).abs().max()) > 0.1


def test_text_image_of_a_seed_does_not_depend_on_the_batch(latent):
    options = {"steps": 5, "guidance": 3.0, "batch": 64}
    prompts = ["a face", "a person with a hat"] * 32
    together = sampling.ddim(latent, latent.noise(64, 3), prompt=prompts, **options)
    alone = sampling.ddim(latent, latent.noise(1, 3, first=41), prompt=prompts[41], **options)
    assert float((together[41] - alone[0]).abs().max()) < 1e-3
    pieces = sampling.ddim(
        latent, latent.noise(3, 3, first=41), prompt=prompts[41:44], steps=5, guidance=3.0, batch=1
    )
    assert float((together[41:44] - pieces).abs().max()) < 1e-3
    other = sampling.ddim(latent, latent.noise(1, 3, first=41), prompt=prompts[40], **options)
    assert float((other - alone).abs().max()) > 2e-3


def test_batches_halve_when_memory_runs_out(pixel):
    sizes = []

    def crowded(x, t, eps, rows):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    options = {"steps": 3, "eta": 1.0, "seed": 2}
    x = pixel.noise(8, 0)
    pieces = sampling.ddim(pixel, x, callback=crowded, **options)
    assert sizes[:3] == [8, 4, 2] and max(sizes[2:]) == 2
    torch.testing.assert_close(pieces, sampling.ddim(pixel, x, **options), atol=1e-4, rtol=0)


def test_memory_too_small_for_one_sample_is_an_error(gaussian):
    def full(x, t, eps, rows):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")

    with pytest.raises(ValueError, match="single sample"):
        sampling.ddim(gaussian, gaussian.noise(4, 0), steps=2, callback=full)


def test_other_errors_pass_through(gaussian):
    def broken(x, t, eps, rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        sampling.ddim(gaussian, gaussian.noise(4, 0), steps=2, callback=broken)


def test_step_noise_depends_on_seed_row_and_time_alone(gaussian):
    both = sampling.step_noise(gaussian, [4, 9], 1, 300)
    assert torch.equal(both[1], sampling.step_noise(gaussian, [9], 1, 300)[0])
    others = [(9, 2, 300), (9, 1, 301), (8, 1, 300)]
    for row, seed, t in others:
        assert not torch.equal(both[1], sampling.step_noise(gaussian, [row], seed, t)[0])


def test_latents_of_the_caller_are_left_alone(pixel):
    x = pixel.noise(2, 0)
    before = x.clone()
    sampling.ddim(pixel, x, steps=3, eta=0.5)
    sampling.invert(pixel, x, steps=3, encode=False)
    assert torch.equal(x, before)


def test_result_is_differentiable_on_request(gaussian):
    x = gaussian.noise(1, 0)
    steps = 10
    assert not sampling.ddim(gaussian, x.requires_grad_(), steps=steps).requires_grad
    y, slope = torch.func.jvp(
        lambda x: sampling.ddim(gaussian, x, steps=steps, differentiable=True),
        (x.detach(),),
        (torch.ones_like(x),),
    )
    moved = sampling.ddim(gaussian, x.detach() + 1, steps=steps)
    torch.testing.assert_close(slope, moved - y)  # the map is affine


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 1, 4, 5), "shape"),
        (torch.zeros(1, 4, 4), "shape"),
        (torch.zeros(0, 1, 4, 4), "n >= 1"),
        (torch.full((1, 1, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 1, 4, 4), float("inf")), "infinite"),
    ],
)
def test_bad_latents_are_refused(gaussian, bad, message):
    with pytest.raises(ValueError, match=message):
        sampling.ddim(gaussian, bad, steps=2)
    with pytest.raises(ValueError, match=message):
        sampling.invert(gaussian, bad, steps=2, encode=False)


class Picture:
    """Stands for a picture, or anything else that holds no numbers."""


@pytest.mark.parametrize(
    "value",
    [
        None,
        "face.png",
        Picture(),
        [Picture()],
        [[1.0], [1.0, 2.0]],
        torch.zeros(1, 1, 4, 4).cfloat(),
    ],
)
def test_values_that_are_no_numbers_are_refused(gaussian, value):
    for call, own in (
        (sampling.ddim, {}),
        (sampling.invert, {}),
        (sampling.invert, {"encode": False}),
    ):
        with pytest.raises(ValueError, match="real numbers"):
            call(gaussian, value, steps=2, **own)
    with pytest.raises(ValueError, match="real numbers"):
        gaussian.encode(value)


@pytest.mark.parametrize("prompt", [3, [None], {"a face": 1}, b"a face"])
def test_prompts_that_are_no_texts_are_refused(latent, prompt):
    with pytest.raises(ValueError, match="give a text"):
        sampling.ddim(latent, latent.noise(1, 0), steps=2, prompt=prompt)


@pytest.mark.parametrize("kind", ["celebahq-256", "sd-1.5"])
def test_a_network_of_double_precision_inverts_what_comes_in_single(tiny, kind):
    exact = models.load(tiny[kind], device="cpu", dtype=torch.float64)
    mixed = models.load(tiny[kind], device="cpu")
    mixed.unet.double()
    images = torch.zeros(1, *exact.image_shape)
    for generator in (exact, mixed):
        found = sampling.invert(generator, images, steps=2, refine=1)
        assert found.dtype == torch.float64 and bool(found.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, "eta"),
        ({"start": 1000}, "start"),
        ({"stop": -1}, "stop"),
        ({"start": 100, "stop": 600}, "noisier"),
        ({"prompt": "a face"}, "unconditional"),
        ({"guidance": 3.0}, "unconditional"),
        ({"batch": 0}, "batches"),
        ({"eta": 1.0, "seed": -1}, "seed"),
    ],
)
def test_bad_options_are_refused(gaussian, options, message):
    with pytest.raises(ValueError, match=message):
        sampling.ddim(gaussian, gaussian.noise(1, 0), steps=10, **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 4, 4), 255.0), "clamp"),
        (torch.full((1, 1, 4, 4), -1.5), "clamp"),
        (torch.full((1, 1, 4, 4), float("nan")), "finite"),
        (torch.zeros(1, 3, 4, 4), "resize"),
        (torch.zeros(0, 1, 4, 4), "n >= 1"),
        ([], "n >= 1"),
    ],
)
def test_bad_images_are_refused(gaussian, images, message):
    with pytest.raises(ValueError, match=message):
        sampling.invert(gaussian, images, steps=2)


@pytest.mark.parametrize("refine", [-1, 1.5, None])
def test_only_whole_numbers_of_passes_refine(gaussian, refine):
    with pytest.raises(ValueError, match="refine = .* whole number of passes"):
        sampling.invert(gaussian, torch.zeros(1, 1, 4, 4), steps=2, refine=refine)


def test_inversion_goes_up(gaussian):
    with pytest.raises(ValueError, match="cleaner"):
        sampling.invert(gaussian, gaussian.noise(1, 0), steps=10, start=600, stop=100)


def test_heads_that_are_equivalent_give_the_same_images(pixel):
    class Velocity(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t, return_dict=False):
            a = pixel.alphas.float()[t].view(-1, 1, 1, 1)
            return ((self.inner(x, t)[0] - (1 - a).sqrt() * x) / a.sqrt(),)

    class Sigma(Velocity):
        def forward(self, x, t, return_dict=False):
            eps = self.inner(x, t)[0]
            return (torch.cat([eps, eps.flip(0) + 7], 1),)

    build = {"alphas": pixel.alphas, "latent_shape": pixel.latent_shape}
    velocity = models.Generator(Velocity(pixel.unet), prediction="v_prediction", **build)
    sigma = models.Generator(Sigma(pixel.unet), **build)
    x = pixel.noise(3, 0)
    for t in (0, 400, 999):
        times = torch.tensor([t, t, max(t - 1, 0)])
        plain = pixel.epsilon(x, times)
        torch.testing.assert_close(velocity.epsilon(x, times), plain, atol=1e-4, rtol=1e-4)
        assert torch.equal(sigma.epsilon(x, times), plain)
    image = sampling.ddim(pixel, x, steps=10)
    torch.testing.assert_close(sampling.ddim(velocity, x, steps=10), image, atol=1e-3, rtol=0)
    assert torch.equal(sampling.ddim(sigma, x, steps=10), image)


# Interpolation


def test_a_spherical_path_keeps_the_norm_and_the_pace():
    a, b = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    path = sampling.spherical(a, b, np.linspace(0, 1, 9))
    assert path.shape == (3, 9, 1, 4, 4)
    torch.testing.assert_close(path[:, 0], a)
    torch.testing.assert_close(path[:, -1], b)
    norms = path.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms, norms[:, :1].expand(-1, 9))
    steps = path.diff(dim=1).flatten(2).norm(dim=2)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 8))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.1, 3.0])
def test_a_spherical_path_turns_by_its_share_of_the_angle_however_small(angle):
    """In the plane the answer is known: cos and sin of the share of the angle."""
    points = [[1.0, 0.0], [np.cos(angle), np.sin(angle)], [np.cos(angle / 4), np.sin(angle / 4)]]
    start, end, quarter = torch.tensor(points, dtype=torch.float64).view(3, 1, 1, 1, 2)
    found = sampling.spherical(start, end, [0.25])[:, 0]
    torch.testing.assert_close(found, quarter, rtol=0, atol=1e-15 + 1e-11 * angle)


def test_a_spherical_path_of_equal_directions_is_straight():
    a = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(sampling.spherical(a, 2 * a, [0.5])[:, 0], 1.5 * a)


@pytest.mark.parametrize("factor, message", [(-1.0, "opposite"), (0.0, "zero")])
def test_pairs_without_an_arc_are_refused(factor, message):
    a = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        sampling.spherical(a, factor * a, [0.5])
    with pytest.raises(ValueError, match="one shape"):
        sampling.spherical(a, a[0], [0.5])
