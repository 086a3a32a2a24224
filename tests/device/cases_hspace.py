"""A case for each public call of hspace, on models of random weights."""

import tempfile
from pathlib import Path

import torch
from cases_diffusion import STEPS, faces, pixel, tiny
from cases_faces import judge
from table import CASES, DESCENTS, EXCEPTIONS, ON_CPU

from lib import hspace
from lib.faces import attributes
from lib.hspace import (
    autoencoder,
    baselines,
    bases,
    contest,
    deltas,
    editing,
    fits,
    means,
    published,
    schedule,
    taps,
    trained,
)

RUN = {"steps": 2, "t_edit": 500}
SHAPE = hspace.h_shape(tiny())
H = torch.linspace(-1, 1, 4 * 16 * 64).sin().view(4, *SHAPE)
CHANGE = H[0]
SETTING = published.Setting("smiling", "face", "smiling face", 500)


def model(on, **options):
    """A pixel model and two latents, both on the device."""
    generator, z = pixel(on, **options)
    return generator, on(z)


def constant(on):
    """A constant Δh, where the caller has it."""
    return hspace.constant(on(CHANGE))


def steps(on):
    return hspace.per_step({0: on(H[0]), 999: on(H[1])})


def encode(images):
    """Embeddings of images that depend on all of them, (n, 8)."""
    return images.flatten(1).unflatten(1, (8, -1)).mean(2)


def direction(on):
    return on(torch.linspace(-1, 1, 8))


def gradient(x, t):
    """What a classifier would give to guidance."""
    return x.cos()


def epsilon_changes(on):
    z = tiny().noise(2, 1)
    return hspace.per_step({t: on(z[i]) for i, t in enumerate((0, 999))})


def captured(on):
    generator, z = model(on)
    with hspace.capture(generator) as h, hspace.inject(generator, constant(on), rows=[True, False]):
        generator.epsilon(z, 500)
    with hspace.inject(generator, steps(on), rows=[True, False]):
        return h, generator.epsilon(z, 500)


def shared(on):
    generator, z = model(on)
    with taps.shared_encoder(generator, 2):
        return generator.epsilon(torch.cat([z, z]), 500)


@torch.no_grad()
def coder(on):
    """An autoencoder whose code changes the prediction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = autoencoder.Autoencoder(tiny())
    own.axes.copy_(torch.linspace(-1, 1, own.axes.numel()).sin().view_as(own.axes) / 30)
    last = own.join[-1].weight
    last.copy_(torch.linspace(-1, 1, last.numel()).cos().view_as(last) / 9)
    found = autoencoder.Autoencoder(model(on)[0])
    found.load_state_dict(own.state_dict())
    return found


def recoded(on):
    """Inverted with codes, decoded with others, and what one noisy image becomes."""
    own, run = coder(on), {"steps": 2}
    coded = autoencoder.invert_images(own, on(faces()), **run)
    change = on(torch.linspace(-1, 1, 64))
    with torch.no_grad():
        noisy = own(on(faces()), on(torch.tensor([3, 900])), on(faces()))
    return coded, autoencoder.edit(own, coded, change, **run), noisy


def coded_file(on):
    """Written to a file and read again."""
    with tempfile.TemporaryDirectory() as folder:
        autoencoder.save(coder(on), Path(folder))
        return autoencoder.codes(autoencoder.load(model(on)[0], Path(folder)), on(faces()))


def code_direction(on):
    codes = torch.linspace(0, 999, 40 * 64).sin().view(40, 64)
    return autoencoder.direction(on(codes), on(codes[:, 0] > codes[:, 1]))


def tuned(on):
    generator, z = model(on)
    own = {"steps": 2, "t_start": 500, "short": 2}
    found = baselines.fine_tune(generator, z, encode, direction(on), **own)
    return generator, found, z


def block(on, **options):
    """A trained f_t, its history and what it gives."""
    generator, z = model(on)
    delta = trained.DeltaBlock(generator)
    rows = trained.train(generator, delta, z, encode, direction(on), batch=1, **RUN, **options)
    with torch.no_grad():
        return generator, delta, rows, delta(on(H), 999)


def kept(on):
    """Written to a file and read again."""
    generator, delta, _, _ = block(on)
    with tempfile.TemporaryDirectory() as folder:
        path = trained.save(delta, Path(folder) / "delta.safetensors")
        with torch.no_grad():
            return trained.load(generator, path)(on(H), 0)


def resumed(on):
    with tempfile.TemporaryDirectory() as folder:
        options = {"checkpoint": Path(folder) / "delta.safetensors"}
        return block(on, **options)[2], block(on, **options)[3]


def towards_smile(on, function, **options):
    generator, z = model(on)
    return function(generator, "smile", z, **options)


def of_fit(on):
    generator, _ = model(on)
    fit = towards_smile(on, fits.fit_block, **RUN)
    return fits.block_of(generator, fit, **RUN)(on(H), 999)


def curves(on):
    generator, _ = model(on)
    found = schedule.curves(generator, faces(), attributes.distance, steps=3)
    return found, schedule.t_edit(found), schedule.t_boost(found)


def labelled(on):
    generator, z = model(on)
    z = torch.cat([z, z.flip(0) * 0.5])
    order = lambda x: {"first": x.new_tensor([1, 0, 1, 0]) > 0}  # noqa: E731
    found = means.labelled_differences(generator, z, order, steps=2, halves=2)
    return found


def ways(on):
    generator, z = model(on)
    tools = contest.Tools(
        {"constant": (constant(on), 0.5)},
        epsilon_changes(on),
        z[:1],
        gradient,
        generator,
        z[0] / z[0].norm(),
        999,
    )
    found = contest.ways(generator, z, tools, steps=2, t_edit=500, t_boost=0, r=0.5)
    return {name: way(0.5).value for name, way in found.items()}


def swept_way(on):
    plain = on(faces())
    way = lambda c: contest.timed(torch.lerp, plain, plain.flip(-1), c)  # noqa: E731
    found = contest.sweep(plain, way, "smile", [0.3, 0.6], 9.0)
    return found.images, [d.to(on.device) for d in found.distances], found.top


def sufficient(on):
    """Images where the model lies; strengths and who was accepted come on the CPU."""
    enough, levels = lambda x: x.mean((1, 2, 3)) > 9, (0.5, 1.0)  # noqa: E731
    options = {"levels": levels, "t_edit": 500, **STEPS}
    images, *rest = editing.sufficient(*model(on), constant(on), enough, **options)
    return images, [x.to(on.device) for x in rest]


def moved(on):
    plain = on(faces())
    way = lambda c: torch.lerp(plain, plain.flip(-1), c)  # noqa: E731
    return contest.gain_at_distance(plain, way, "smile", [0.3, 0.9], 9.0)


def published_edit(on):
    generator, z = model(on)
    own = {"t_edit": 500, "t_boost": 0, "latents": z, "test": z[:1], "steps": 2}
    return published.edit(generator, SETTING, [SETTING], **own)[1:]


def embedded(on):
    """The encoder of a folder; the kit's own has the published format."""
    own = published.encoder(str(judge.MODELS / "clip"))
    return own(on(faces())), published.encoder("")(on(faces()))


def plain_bases(on, function):
    generator, z = model(on, differentiable=True)
    with torch.no_grad():
        found = function(generator, z[:1], 500, k=1, iterations=2)
    return found


CASES |= {
    "hspace.autoencoder.Autoencoder": recoded,
    "hspace.autoencoder.codes": coded_file,
    "hspace.autoencoder.invert_images": recoded,
    "hspace.autoencoder.decode": recoded,
    "hspace.autoencoder.edit": recoded,
    "hspace.autoencoder.direction": code_direction,
    "hspace.autoencoder.save": coded_file,
    "hspace.autoencoder.load": coded_file,
    "hspace.baselines.epsilon_shift": lambda on: baselines.epsilon_shift(
        *model(on), epsilon_changes(on), steps=2, symmetric=True
    ),
    "hspace.baselines.mix_latents": lambda on: baselines.mix_latents(
        *model(on), model(on)[1][:1], steps=2, t_mix=500, weight=0.3
    ),
    "hspace.baselines.guide": lambda on: baselines.guide(*model(on), gradient, steps=2, scale=2.0),
    "hspace.baselines.fine_tune": lambda on: tuned(on)[1].unet.conv_in.weight,
    "hspace.baselines.with_weights": lambda on: baselines.with_weights(
        model(on)[0], tiny().unet.state_dict()
    ).epsilon(model(on)[1], 9),
    "hspace.baselines.blend": lambda on: baselines.blend(*tuned(on)[:2], 0.5).epsilon(
        model(on)[1], 500
    ),
    "hspace.bases.principal_components": lambda on: bases.principal_components(on(H), 2),
    "hspace.bases.principal": lambda on: bases.principal(
        model(on)[0], on(tiny().noise(4, 0)), k=1, **RUN
    ),
    "hspace.bases.project": lambda on: bases.project(on(H[0]), on([H[1], H[2]])),
    "hspace.bases.jacobian_directions": lambda on: plain_bases(on, bases.jacobian_directions),
    "hspace.bases.pullback_basis": lambda on: plain_bases(on, bases.pullback_basis),
    "hspace.bases.pullback_edit": lambda on: bases.pullback_edit(
        *model(on), model(on)[1][0] / 30, steps=2, t=999, step=0.1, repeats=2
    ),
    "hspace.bases.pick": lambda on: bases.pick(
        {999: on(H)}, hspace.per_step({0: on(H[0]), 999: on(H[1])})
    ),
    "hspace.bases.singular_basis": lambda on: bases.singular_basis(
        lambda x: (x * on(torch.arange(1.0, 5))).sin(), on(torch.zeros(4)), 2
    ),
    "hspace.contest.timed": lambda on: contest.timed(torch.add, *on([H, H])).value,
    "hspace.contest.Method": lambda on: (
        contest.Method(torch.add, tuple(on([H, H])), {}, dial="alpha")(
            lambda f, *a, **k: f(*a, **k), 0.5
        ).value
    ),
    "hspace.contest.ways": ways,
    "hspace.contest.from_the_middle": lambda on: contest.from_the_middle(
        *[tuned(on)[i] for i in (0, 2, 1)], steps=2, weight=0.5
    ),
    "hspace.contest.per_face": lambda on: contest.per_face(
        *model(on), constant(on), torch.tensor([0.5, 0.0]), strength=2.0, t_edit=500, **STEPS
    ),
    "hspace.contest.sweep": swept_way,
    "hspace.contest.gain_at_distance": moved,
    "hspace.deltas.PerStep": lambda on: hspace.per_step({3: CHANGE})(on(H), 4),
    "hspace.deltas.Sum": lambda on: hspace.combine({constant(on): 1.0, steps(on): 2.0})(on(H), 9),
    "hspace.deltas.constant": lambda on: constant(on).changes,
    "hspace.deltas.per_step": lambda on: steps(on),
    "hspace.deltas.combine": lambda on: hspace.combine({constant(on): 0.5})(on(H), 9),
    "hspace.deltas.for_steps": lambda on: deltas.for_steps(constant(on), 3)(on(H), 9),
    "hspace.editing.predictions": lambda on: hspace.predictions(*model(on), 500, constant(on)),
    "hspace.editing.asyrp": lambda on: hspace.asyrp(
        *model(on), constant(on), t_boost=400, progress=False, **RUN
    ),
    "hspace.editing.edit": lambda on: hspace.edit(
        *model(on), steps(on), symmetric=True, progress=False, **RUN
    ),
    "hspace.editing.edit_each": lambda on: editing.edit_each(
        *model(on), constant(on), torch.tensor([0.5, 2.0]), batch=1, **RUN
    ),
    "hspace.editing.scaled": lambda on: editing.scaled(constant(on), 2.0, steps=3)(on(H), 9),
    "hspace.editing.sufficient": sufficient,
    "hspace.editing.reconstruct": lambda on: hspace.reconstruct(*model(on), t_boost=400, **STEPS),
    "hspace.fits.text_direction": lambda on: fits.text_direction("smile", device=on.device),
    "hspace.fits.encode": lambda on: fits.encode(on(faces())),
    "hspace.fits.Enough": lambda on: fits.Enough("smile")(on(faces())),
    "hspace.fits.fit_block": lambda on: towards_smile(on, fits.fit_block, **RUN)[:2],
    "hspace.fits.block_of": of_fit,
    "hspace.fits.fit_whole": lambda on: towards_smile(
        on, fits.fit_whole, steps=2, t_start=500, short=2
    ).state["conv_in.weight"],
    "hspace.means.mean_over_samples": lambda on: means.mean_over_samples(
        *model(on), constant(on), progress=False, **RUN
    ),
    "hspace.means.mean_difference": lambda on: means.mean_difference(
        {9: on(H)}, on(torch.tensor([True, False, True, False]))
    ),
    "hspace.means.labelled_differences": labelled,
    "hspace.means.random_like": lambda on: means.random_like(steps(on), 0),
    "hspace.means.projected": lambda on: means.projected(steps(on), [steps(on)]),
    "hspace.means.agreement": lambda on: means.agreement(steps(on), steps(on)),
    "hspace.means.mean_epsilon": lambda on: means.mean_epsilon(*model(on), constant(on), **RUN),
    "hspace.published.encoder": embedded,
    "hspace.published.edit": published_edit,
    "hspace.schedule.curves": curves,
    "hspace.schedule.t_edit": curves,
    "hspace.schedule.t_boost": curves,
    "hspace.taps.capture": captured,
    "hspace.taps.inject": captured,
    "hspace.taps.shared_encoder": shared,
    "hspace.taps.h_shape": lambda on: hspace.h_shape(model(on)[0]),
    "hspace.trained.DeltaBlock": lambda on: block(on)[2:],
    "hspace.trained.directional_loss": lambda on: trained.directional_loss(on(H)),
    "hspace.trained.train": resumed,
    "hspace.trained.save": kept,
    "hspace.trained.load": kept,
}

NUMBERS = "takes and returns numbers or texts alone"
EXCEPTIONS |= {
    "hspace.contest.strengths_at": "takes and returns numbers alone",
    "hspace.deltas.finite_number": NUMBERS,
    "hspace.deltas.no_change": NUMBERS,
    "hspace.fits.templates": NUMBERS,
    "hspace.fits.main": "a command",
    "hspace.fits.probes": "from drawn faces to a file, on the CPU",
    "hspace.published.data_set": NUMBERS,
    "hspace.published.text_direction": "texts in; `published.edit` moves what comes out",
    "hspace.schedule.edit_steps": NUMBERS,
    "hspace.schedule.cancellation": NUMBERS,
    "hspace.schedule.window_cancellation": NUMBERS,
}
CURVES = "means over images, a few numbers per curve"
ON_CPU |= {
    "hspace.schedule.curves": CURVES,
    "hspace.schedule.t_edit": CURVES,
    "hspace.schedule.t_boost": CURVES,
    "hspace.contest.gain_at_distance": "scores are collected on the CPU, image by image",
    "hspace.published.edit": "images to look at and cosines of each image come out on the CPU",
}
DESCENTS |= {
    "hspace.baselines.fine_tune",
    "hspace.baselines.blend",
    "hspace.contest.from_the_middle",
    "hspace.fits.block_of",
    "hspace.fits.fit_block",
    "hspace.fits.fit_whole",
    "hspace.published.edit",
    "hspace.trained.DeltaBlock",
    "hspace.trained.load",
    "hspace.trained.save",
    "hspace.trained.train",
}
