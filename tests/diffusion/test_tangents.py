"""Laws of the linearised network: it is the derivative, and leaves the network as it was."""

import pytest
import torch
from torch import nn

from lib import hspace, slices
from lib.diffusion import mixture, models, rehearsal, sampling, tangents
from lib.geometry import metric


def load(tiny, kind, **options):
    return models.load(tiny[kind], device="cpu", dtype=torch.float64, **options)


def text_of(generator):
    return {} if generator.text_encoder is None else {"prompt": "a face", "guidance": 2.0}


@pytest.mark.parametrize("kind", rehearsal.PUBLISHED)
def test_tangents_equal_forward_mode_of_the_rewritten_network(tiny, kind):
    generator, twin = load(tiny, kind), load(tiny, kind, differentiable=True)
    x, *moves = generator.noise(6, 0).split(2)
    run = {"steps": 3, **text_of(generator)}
    images, found = tangents.pushforward(generator, x, moves, **run)
    torch.testing.assert_close(images, sampling.ddim(generator, x, **run), atol=1e-11, rtol=0)

    def draw(y):
        return sampling.ddim(twin, y, differentiable=True, **run)

    for dx, ours in zip(moves, found, strict=True):
        theirs = torch.func.jvp(draw, (x,), (dx,))[1]
        assert float(theirs.abs().max()) > 0.01
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("kind", ("celebahq-256", "sd-1.5"))
def test_the_jacobian_of_a_slice_gives_the_pullback_metric(tiny, kind):
    generator, twin = load(tiny, kind), load(tiny, kind, differentiable=True)
    plane, t = slices.Slice(generator.noise(3, 1)), slices.grid(2, low=(0.2, 0.3))
    run = {"steps": 3, **text_of(generator)}
    for name in {"a face", ""} if run.get("prompt") else ():
        twin.embed(name, 1)  # encoded before a derivative passes through

    def views(images):
        return images, images.square().mean((2, 3))

    options = {"features": views, "differentiable": True, **run}
    exact = metric.pullback_metric(lambda s: slices.render(twin, plane, s, **options), t)
    ours = slices.jacobian(generator, plane, t, features=views, batch=3, **run)
    for J, g in zip(ours, exact, strict=True):
        torch.testing.assert_close(J.mT @ J, g, rtol=1e-8, atol=1e-10)
    pixels = slices.jacobian(generator, plane, t, **run)
    torch.testing.assert_close(pixels, ours[0], rtol=0, atol=1e-12)


def test_the_network_is_itself_again_also_after_an_error(tiny):
    generator = load(tiny, "sd-1.5")
    x = generator.noise(1, 0)
    before = generator.epsilon(x, 300, prompt="a face")
    with pytest.raises(KeyError), tangents.linearised(generator.unet):
        raise KeyError
    tangents.pushforward(generator, x, [x], steps=1)
    assert torch.equal(generator.epsilon(x, 300, prompt="a face"), before)
    assert not any("forward" in module.__dict__ for module in generator.unet.modules())


def test_unknown_modules_and_changed_networks_are_refused(tiny):
    modes = mixture.mixture(torch.zeros(2, 1, 2, 2), sigma=0.5)
    with pytest.raises(ValueError, match="no tangent rule for a module .*differentiable=True"):
        tangents.pushforward(modes, modes.noise(1, 0), [], steps=2)
    with pytest.raises(ValueError, match="no tangent rule for a module Tanh"):
        tangents.linearised(nn.Sequential(nn.Linear(2, 2), nn.Tanh())).__enter__()
    with pytest.raises(ValueError, match="no tangent rule for a module GroupNorm"):
        tangents.linearised(nn.GroupNorm(2, 4, affine=False)).__enter__()
    generator = load(tiny, "celebahq-256")
    with hspace.capture(generator), pytest.raises(ValueError, match="hooks.*hspace"):
        tangents.pushforward(generator, generator.noise(1, 0), [], steps=2)
    generator.unet._compiled_call_impl = generator.unet.forward
    with pytest.raises(ValueError, match="compiled.*fast=True"):
        tangents.pushforward(generator, generator.noise(1, 0), [], steps=2)
