"""A case for each public call of svd, on latents without near ties."""

import numpy as np
import torch
from cases_diffusion import STEPS, faces, pixel, text, tiny
from table import CASES, EXCEPTIONS, ON_CPU

from lib import hspace, svd
from lib.svd import atoms, avi, comparison, edits, mixing, properties

X = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 6, 6)))
Z = X.flip(0) + 0.3
PATTERN = X[:1] - Z[:1]
ALPHAS = [0.2, 0.6]
RANKS = torch.tensor([[1.0, 4.0, 2.0], [5.0, 2.0, 2.0]])
MIX = {"k": 2}


def pair(on):
    return avi.atom_pair(on(X), on(Z), **MIX)


def network(on):
    """A network trained for two steps where its latents lie."""
    own = avi.AttributeVectorIntegration(3, 2)
    own.fit(on(X), on(Z), steps=2)
    return own.integrate(on(X), on(Z)), own.history.to(on.device)


def delta(on):
    """A constant change of h, where the caller has it."""
    return hspace.constant(torch.linspace(-1, 1, 16 * 8 * 8).view(16, 8, 8))


def shifted(on):
    own, z = pixel(on)
    return edits.shifted(own, on(z), delta(on), 0.5, steps=2, start=999, stop=0)


def shift_ways(on):
    own, z = pixel(on)
    run = {"steps": 2, "t": 0, "seed": 1}
    ways = edits.shift_ways(own, on(z), on(z), on(faces()), delta(on), **run)
    return {name: way(0.3) for name, way in ways.items()}


def mean_shift(on):
    own, z = pixel(on)
    return edits.mean_shift(own, on(z), on(z.flip(0) * 0.5), steps=2)(on(torch.zeros(1)), 0)


def prompt_ways(on):
    own, z = text(on)
    paths = [properties.trajectory(own, on(z), prompt=p, **STEPS) for p in ("a", "b")]
    return edits.prompt_ways(own, *paths, ("a", "b"), steps=2, t=0, row=1)


def latent_ways(on):
    return {n: way(0.4) for n, way in edits.latent_ways(on(X), on(Z), k=2).items()}


def latent_pair(on):
    own, z = text(on)
    return mixing.latent_pair(own, on(z), "a", "b", steps=3, stop=500, shift=1)


def entry(on, own):
    """An edit that enters at the last of two times."""

    def finish(x):
        return own.decode(on(x)).clamp(-1, 1).cpu()

    def call(function, *given, **options):
        return function(*given, **options)

    return comparison.Entry(own, properties.times(own, 2), 1, finish, call)


def compare(on):
    own, z = pixel(on)
    path, score = on(torch.stack([z, z, z])), lambda a, b: {"off": (a - b).mean((1, 2, 3)).cpu()}
    sizes = {"k": 2, "weights": (0.5,), "omega": 0.5}
    ends, shift = (path, path.flip(1)), (delta(on), 1)
    rows = comparison.compare(entry(on, own), ends, shift, score, **sizes)
    return {way: [found[0]["off"] for found in row.values()] for way, row in rows.items()}


def committed(on):
    own, z = pixel(on)
    path = on(torch.stack([z, z, z]))
    return comparison.committed(entry(on, own), path, delta(on), k=2)


CASES |= {
    "svd.atoms.as_latents": lambda on: atoms.as_latents(on(X)),
    "svd.atoms.decompose": lambda on: svd.decompose(on(X)),
    "svd.atoms.compose": lambda on: svd.compose(*svd.decompose(on(X))),
    "svd.atoms.gaps": lambda on: atoms.gaps(svd.decompose(on(X))[1]),
    "svd.atoms.rescale": lambda on: svd.rescale(on(X), on(torch.tensor([0, 1, 2])), 2.0),
    "svd.atoms.principal_angles": lambda on: atoms.principal_angles(on(X[..., :2]), on(Z[..., :2])),
    "svd.atoms.grassmann_distance": lambda on: svd.grassmann_distance(
        on(X[..., :2]), on(Z[..., :2])
    ),
    "svd.atoms.match_atoms": lambda on: atoms.match_atoms(
        svd.decompose(on(X)), svd.decompose(on(Z))
    ),
    "svd.atoms.track": lambda on: svd.track(on(torch.stack([X, X + 0.1, X + 0.2])), [9, 5, 1]),
    "svd.atoms.aligned_atom": lambda on: svd.aligned_atom(on(X), on(PATTERN)),
    "svd.atoms.bbp_ratio": lambda on: atoms.bbp_ratio(on(RANKS), 6, 0.3),
    "svd.atoms.bbp_overlap": lambda on: svd.bbp_overlap(on(RANKS)),
    "svd.atoms.crossing_time": lambda on: svd.crossing_time(on(10 * RANKS), 6, pixel(on)[0].alphas),
    "svd.avi.AtomPair": lambda on: (
        pair(on).project(on(Z)),
        pair(on).edit(pair(on).values, 0.5),
        pair(on).gram,
    ),
    "svd.avi.atom_pair": lambda on: (
        pair(on),
        avi.atom_pair(on(X), on(Z), bases=(mixing.cosine_basis(6),) * 2, **MIX),
    ),
    "svd.avi.reference_values": lambda on: svd.reference_values(pair(on)),
    "svd.avi.losses": lambda on: (
        svd.losses(pair(on), pair(on).values, None),
        svd.losses(pair(on), pair(on).values, svd.reference_values(pair(on))),
    ),
    "svd.avi.best_values": lambda on: svd.best_values(pair(on)),
    "svd.avi.integrate": lambda on: svd.integrate(on(X), on(Z), **MIX),
    "svd.avi.AttributeVectorIntegration": network,
    "svd.edits.images_of": lambda on: edits.images_of(text(on)[0], text(on)[1]),
    "svd.edits.renoised": lambda on: edits.renoised(on(X), 0.3, seed=1),
    "svd.edits.latent_ways": latent_ways,
    "svd.edits.mean_shift": mean_shift,
    "svd.edits.shifted": shifted,
    "svd.edits.shift_ways": shift_ways,
    "svd.edits.prompt_ways": prompt_ways,
    "svd.comparison.compare": compare,
    "svd.comparison.committed": committed,
    "svd.mixing.match_noise": lambda on: svd.match_noise(*pixel(on), 900, 500),
    "svd.mixing.latent_pair": latent_pair,
    "svd.mixing.interpolate": lambda on: [
        svd.interpolate(on(X), on(Z), 0.3, path=p) for p in ("linear", "spherical")
    ],
    "svd.properties.trajectory": lambda on: properties.trajectory(
        pixel(on)[0], on(tiny().noise(2, 0)), **STEPS
    ),
    "svd.properties.inverse_trajectory": lambda on: properties.inverse_trajectory(
        pixel(on)[0], on(faces()), **STEPS
    ),
    "svd.properties.straight_path": lambda on: properties.straight_path(on(X), on(Z), ALPHAS),
    "svd.properties.fresh_path": lambda on: properties.fresh_path(on(X), ALPHAS, seed=0),
    "svd.properties.subspace_distance": lambda on: properties.subspace_distance(on(X), on(Z), k=2),
    "svd.properties.neighbourhood": lambda on: properties.neighbourhood(
        on(torch.stack([X, Z, X + Z])), ALPHAS, k=2, seed=0
    ),
    "svd.properties.random_move": lambda on: properties.random_move(on(X), 0.1, seed=0),
    "svd.properties.scrambled": lambda on: properties.scrambled(on(X)),
    "svd.properties.pattern_ranks": lambda on: properties.pattern_ranks(on(X), on(PATTERN)),
    "svd.properties.first_rank_time": lambda on: properties.first_rank_time(on(RANKS), [9, 1]),
    "svd.properties.crossing": lambda on: [properties.crossing(on(RANKS), [9, 1])],
    "svd.properties.crossed": lambda on: properties.crossed(on(RANKS), [9, 1]),
    "svd.properties.rank_order": lambda on: properties.rank_order(on(RANKS), [9, 1]),
    "svd.properties.followed": lambda on: properties.followed(
        on(torch.stack([X, Z, X + Z])),
        {"a": (on(X), on(Z))},
        {"a": on(X[:, 0, 0, 0] > -9)},
        ALPHAS,
        seed=0,
    ),
    "svd.properties.signal": lambda on: properties.signal(on(X)),
}

EXCEPTIONS |= {
    "svd.atoms.random_subspaces": "draws on the CPU; `grassmann_distance` compares",
    "svd.atoms.random_distance": "numbers in, two numbers out",
    "svd.mixing.cosine_basis": "a number in; `atom_pair` moves the basis",
    "svd.properties.times": "numbers in, numbers out",
    "svd.properties.planted_overlaps": "numbers in, numbers out",
    "svd.comparison.swept": "takes records of numbers",
    "svd.comparison.prices": "takes records of numbers",
    "svd.comparison.lead": "takes arrays of numbers",
    "svd.comparison.lead_apart": "takes arrays of numbers",
}
IMAGES = "images to look at and to score come out on the CPU, as the file says"
ON_CPU |= {
    "svd.edits.images_of": IMAGES,
    "svd.edits.shifted": IMAGES,
    "svd.edits.shift_ways": IMAGES,
    "svd.edits.prompt_ways": IMAGES,
    "svd.comparison.compare": IMAGES,
    "svd.comparison.committed": IMAGES,
}
