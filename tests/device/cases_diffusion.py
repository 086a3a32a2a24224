"""A case for each public call of diffusion, on models of random weights."""

import functools
import tempfile
import warnings
from pathlib import Path

import torch
from table import CASES, EXCEPTIONS, ON_CPU

from benchmarks import small
from lib.diffusion import (
    decisions,
    differentiable,
    familiar,
    folders,
    images,
    mixture,
    models,
    patterns,
    sampling,
    spacetime,
    tangents,
)

STEPS = {"steps": 2, "progress": False}
TEXT = {"prompt": "a face", "guidance": 2.0}
ALPHAS = 0.4, 0.7
EVENTS = torch.tensor([[-1.0, 0.5, 0.3], [0.4, 0.2, -0.5], [1.5, -0.3, 1.0]]).double()
CENTRES = torch.tensor([[[[1.0, -1.0]]], [[[-1.0, 0.5]]]]).double()


@functools.cache
def tiny(kind: str = "celebahq-256", **options) -> models.Generator:
    """A small model of random weights on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = small.write(kind, Path(folder) / kind)
        return models.load(path, device="cpu", **options)


def pixel(on, **options):
    """A pixel model on the device, and two latents where the caller has them, on the CPU."""
    return on(tiny(**options)), tiny().noise(2, 0)


def text(on):
    """A text model on the device, and two latents."""
    return on(tiny("sd-1.5")), tiny("sd-1.5").noise(2, 0)


def faces(n=2):
    """Images (n, 3, 16, 16) in [-1, 1], smooth enough for an inversion."""
    ramp = torch.linspace(-1, 1, 16)
    waves = torch.stack([(ramp[:, None] * (k + 1) + ramp).sin() for k in range(3 * n)])
    return waves.view(n, 3, 16, 16) * 0.9


def generator(on):
    pixels, z = pixel(on)
    latents, y = text(on)
    both = latents.epsilon(on(y), 500, **TEXT), pixels.epsilon(on(z), torch.tensor([3, 900]))
    there = latents.decode(latents.encode(faces()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = pixels.to(torch.float64).epsilon(on(z).double(), 3)
    return both, there, exact, pixels.noise(1, 3), latents.embed(["a", "b"], 2)


def loaded(on):
    """`load` refuses a device that is not here by its name, so only what is here is loaded."""
    device = on.device if on.device.type in ("cpu", "cuda") else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        path = small.write("celebahq-256", Path(folder) / "one")
        own = on(models.load(path, device=device))
    return own.epsilon(own.noise(1, 0), 10)


def stochastic(on):
    own, z = pixel(on)
    return sampling.ddim(own, z, eta=1.0, seed=3, first=2, **STEPS), sampling.ddim(
        own, on(z), batch=1, decode=False, **STEPS
    )


def prompted(on):
    own, z = text(on)
    return sampling.ddim(own, z, negative="a", **TEXT, **STEPS)


def inverted(on):
    own, _ = pixel(on)
    return sampling.invert(own, faces(), refine=1, **STEPS), sampling.invert(
        own, on(faces()), **STEPS
    )


def attended(on):
    from diffusers.models.attention_processor import Attention

    own, _ = text(on)
    attention = next(m for m in own.unet.modules() if isinstance(m, Attention))
    x = on(torch.linspace(-1, 1, 3 * attention.to_q.in_features).view(1, 3, -1))
    return attention, x


def attend(on):
    attention, x = attended(on)
    return differentiable.attend(attention, x, None, lambda q, k, v: (q @ k.mT).softmax(-1) @ v)


def linearised(on):
    own, z = pixel(on)
    with torch.no_grad(), tangents.linearised(own.unet) as tape:
        tape.start(tangent=False)
        plain = own.epsilon(on(z), 500)
        tape.start(tangent=True)
        return plain, own.epsilon(on(z), 500)


def pushed(on):
    own, z = text(on)
    return tangents.pushforward(own, on(z), [on(z.flip(0))], steps=2, **TEXT)


def leading(on):
    """J on its leading directions: the signs of singular vectors are those of a library."""
    own, z = pixel(on)
    U, S, V = tangents.top_directions(own, on(z[:1]), 1, steps=1)
    return S, U * S @ V.T


def potential(on):
    """Of two weighted clusters, at η of three events, with its gradient."""
    means, weights = on(EVENTS[:2, :2]), on(torch.tensor([0.3, 0.7]).double())
    psi, eta = spacetime.mixture_potential(means, 0.5, weights), spacetime.natural(on(EVENTS))
    return psi(eta), torch.func.grad(lambda e: psi(e).sum())(eta)


def expected(on):
    """Of a network, at two events next to its training times."""
    own, z = pixel(on)
    points = torch.cat([z.flatten(1), torch.tensor([[0.0], [-2.0]])], 1).double()
    times, points = spacetime.nearest_times(own, on(points))
    probe = on(z.flatten(1).sign())
    return spacetime.expectations(own, points, times, probe), times, points


def cloned(on):
    own, z = pixel(on)
    return decisions.clones(own, on(z), 500, **STEPS), decisions.clones(own, z, 500, **STEPS)


def separated(on):
    labels = on(torch.arange(12) % 2 > 0)
    return decisions.separation(on(faces(12)[:, :, ::8, ::8]), labels, [0.1, 0.6])


def mixed(on):
    """Means where the caller has them."""
    return mixture.mixture(on(CENTRES), 0.3)


def saved(on):
    with tempfile.TemporaryDirectory() as folder:
        files = images.save(on(faces()), Path(folder) / "sheet.png")
        return images.read(files[0], pixel(on)[0])


def pattern(on):
    own = patterns.Patterns(4)
    return own.signs(on(own.noise(2, 0)), on(own.coarse)), sampling.ddim(
        own, on(own.noise(2, 0)), **STEPS
    ).cpu().to(on.device)


def known(on):
    """A reference of two pictures, and how far they are from it."""
    own, z = pixel(on)
    found = familiar.reference(own, on(torch.cat([0.1 * k * faces() for k in range(1, 7)])))
    return found[:2], familiar.strangeness(own, on(faces()), on(z), found)


def warned(on):
    own, z = pixel(on)
    one = familiar.Reference(torch.zeros(5).double(), torch.eye(5).double(), 1e9, 1e9)
    return familiar.warn(own, on(faces()), on(z), one)


def batches(on):
    x = on(faces())
    return sampling.in_batches(lambda rows: 2 * x[rows], 2, 1)


CASES |= {
    "diffusion.decisions.clones": cloned,
    "diffusion.decisions.separation": separated,
    "diffusion.familiar.statistics": lambda on: familiar.statistics(on(faces())),
    "diffusion.familiar.reference": known,
    "diffusion.familiar.strangeness": known,
    "diffusion.familiar.warn": warned,
    "diffusion.folders.weight_hash": lambda on: folders.weight_hash([("x", on(faces()))]),
    "diffusion.images.read": saved,
    "diffusion.images.save": saved,
    "diffusion.mixture.MixtureDenoiser": lambda on: mixed(on).unet.noise(on(CENTRES), 0.5),
    "diffusion.mixture.mixture": lambda on: mixed(on).epsilon(on(CENTRES), 300),
    "diffusion.mixture.second_mode": lambda on: mixture.second_mode(
        on(CENTRES)[:2], 0.3, on(CENTRES), steps=4
    ),
    "diffusion.mixture.flow": lambda on: mixture.flow(mixed(on), on(CENTRES), steps=4),
    "diffusion.models.real_numbers": lambda on: models.real_numbers(on(faces()), "x"),
    "diffusion.models.Generator": generator,
    "diffusion.models.load": loaded,
    "diffusion.differentiable.PlainAttention": lambda on: differentiable.PlainAttention()(
        *attended(on)
    ),
    "diffusion.differentiable.attend": attend,
    "diffusion.differentiable.PlainGroupNorm": lambda on: on(differentiable.PlainGroupNorm(2, 4))(
        on(torch.arange(32.0).view(2, 4, 2, 2))
    ),
    "diffusion.differentiable.make_differentiable": lambda on: differentiable.make_differentiable(
        on(torch.nn.Sequential(torch.nn.GroupNorm(2, 4)))
    )(on(torch.arange(8.0).view(2, 4))),
    "diffusion.patterns.Patterns": pattern,
    "diffusion.sampling.predicted": lambda on: sampling.predicted(*on([faces()] * 2), 0.4),
    "diffusion.sampling.update": lambda on: sampling.update(
        *on([faces()] * 2), *ALPHAS, eta=1.0, noise=on(faces())
    ),
    "diffusion.sampling.step_noise": lambda on: sampling.step_noise(pixel(on)[0], [1, 2], 0, 3),
    "diffusion.sampling.ddim": lambda on: (stochastic(on), prompted(on)),
    "diffusion.sampling.invert": inverted,
    "diffusion.sampling.in_batches": batches,
    "diffusion.sampling.spherical": lambda on: sampling.spherical(
        *on([faces(), faces().flip(0)]), [0.2, 0.7]
    ),
    "diffusion.sampling.rows_per_call": lambda on: [
        sampling.rows_per_call(pixel(on)[0], None) in (16, 64)
    ],
    "diffusion.spacetime.natural": lambda on: spacetime.natural(on(EVENTS)),
    "diffusion.spacetime.mixture_potential": potential,
    "diffusion.spacetime.gaussian_length": lambda on: [
        spacetime.gaussian_length(on(EVENTS[0]), on(EVENTS[2]))
    ],
    "diffusion.spacetime.semicircle": lambda on: spacetime.semicircle(
        on(EVENTS[0]), on(EVENTS[2]), 5
    ),
    "diffusion.spacetime.energy": lambda on: spacetime.energy(on(EVENTS), on(EVENTS.cos())),
    "diffusion.spacetime.nearest_times": expected,
    "diffusion.spacetime.expectations": expected,
    "diffusion.tangents.top_directions": leading,
    "diffusion.tangents.Tape": linearised,
    "diffusion.tangents.linearised": linearised,
    "diffusion.tangents.pushforward": pushed,
}

NUMBERS = "takes and returns numbers or texts alone"
FILE = "from a file to a file, read on the CPU"
EXCEPTIONS |= {
    "diffusion.decisions.clone_agreement": NUMBERS,
    "diffusion.familiar.save": "writes a file",
    "diffusion.familiar.shipped": "reads a file; the numbers are compared on the CPU",
    "diffusion.folders.convert_pickle": FILE,
    "diffusion.folders.new_folder": "a folder",
    "diffusion.folders.locate": "a folder",
    "diffusion.folders.read_json": "a file",
    "diffusion.folders.refuse_pickle": "a file",
    "diffusion.folders.file_hash": "a file",
    "diffusion.folders.unpickled": "a file, read to the CPU",
    "diffusion.folders.read_tensors": "a file, read to the CPU",
    "diffusion.reading.read": "reads files onto the CPU; `models.load` moves what it returns",
    "diffusion.adm.convert": FILE,
    "diffusion.adm.layout": FILE,
    "diffusion.adm.renamed": FILE,
    "diffusion.adm.main": FILE,
    "diffusion.entries.as_list": NUMBERS,
    "diffusion.entries.check": NUMBERS,
    "diffusion.entries.defaults": NUMBERS,
    "diffusion.folders.without_bars": "a setting of the libraries below",
    "diffusion.mixture.even_alphas": NUMBERS,
    "diffusion.mixture.total_stretch": NUMBERS,
    "diffusion.mixture.flow_stretch": NUMBERS,
    "diffusion.mixture.ddim_stretch": NUMBERS,
    "diffusion.models.unit_normal": "the draw of one sample, always on the CPU",
    "diffusion.models.out_of_memory": NUMBERS,
    "diffusion.prompts.check": NUMBERS,
    "diffusion.prompts.check_words": NUMBERS,
    "diffusion.rehearsal.write_random": "writes files",
    "diffusion.rehearsal.networks": "sizes in, layers out; they run in most cases",
    "diffusion.rehearsal.obstacle": NUMBERS,
    "diffusion.rehearsal.rehearse": "loads by name, with `ddim` and `invert` as here",
    "diffusion.rehearsal.main": "a command",
    "diffusion.sampling.time_grid": NUMBERS,
    "diffusion.sampling.nearest": NUMBERS,
    "diffusion.sampling.downward": NUMBERS,
    "diffusion.sampling.upward": NUMBERS,
    "diffusion.sampling.deviation": NUMBERS,
}
FEW = "a few numbers of each image, compared on the CPU"
ON_CPU |= {
    f"diffusion.familiar.{name}": FEW for name in ("statistics", "reference", "strangeness", "warn")
}
