"""A case for each public call of faces that sees a tensor: judges, scores, published networks."""

import functools

from cases_diffusion import faces
from table import CASES, DESCENTS, EXCEPTIONS, ON_CPU, public_calls

from lib.faces import attributes, judge, pairs, pretrained, quality

LEVELS = (0.5, 1.0)
NAME = "smile"  # what the moved images below have more of than the plain ones
attributes.REFERENCE = 64  # fewer faces behind the unit of a gain: they are drawn one by one


def two(on):
    """Plain images and moved ones, where the caller has them."""
    return on(faces(4).flip(-1) * 0.8), on(faces(4))


@functools.cache
def swept(on):
    """Scores and distances at two strengths."""
    plain, moved = two(on)
    images = [plain + c * (moved - plain) for c in LEVELS]
    scores = [attributes.score(plain, x, NAME) for x in images]
    return scores, [attributes.distance(plain, x).cpu() for x in images]


def reachable(on):
    """A gain that the second strength reaches."""
    return swept(on)[0][-1].gain / 2


def raw(on):
    network = judge.load("b", device=on.device)
    return judge.raw_distance(network, *two(on))


def said(on):
    return judge.directional_similarity(*two(on), "a person", "a person with glasses")


@functools.cache
def clip_folder():
    """A published CLIP of random weights: the kit's own, which has the same format."""
    return str(judge.MODELS / "clip")


def tower(on):
    return pretrained.image_tower(None, device=on.device)(faces())


def loaded_clip(on):
    """Read anew: other cases keep it."""
    judge.clip.cache_clear()
    return judge.clip(device=on.device)[0].logit_scale.detach()


CASES |= {
    "faces.attributes.log_odds": lambda on: attributes.log_odds(two(on)[0], "smile"),
    "faces.attributes.labels": lambda on: attributes.labels(two(on)[0]),
    "faces.attributes.distance": lambda on: attributes.distance(*two(on)),
    "faces.attributes.frechet_ratio": lambda on: attributes.frechet_ratio(
        *two(on), two(on)[0].flip(-2), draws=3
    ),
    "faces.attributes.score": lambda on: swept(on),
    "faces.attributes.matched": lambda on: attributes.matched(
        LEVELS, *swept(on), reachable(on), draws=3
    ),
    "faces.attributes.matched_gap": lambda on: attributes.matched_gap(
        swept(on)[0], swept(on)[0], reachable(on), draws=3
    ),
    "faces.attributes.interval": lambda on: attributes.interval(
        lambda x: float(x.mean()), two(on)[0], draws=3
    ),
    "faces.attributes.total_variation": lambda on: attributes.total_variation(
        *(judge.attributes(x) for x in two(on)), "hat"
    ),
    "faces.judge.Judge": lambda on: judge.load("a", device=on.device).pooled(two(on)[0]),
    "faces.judge.resize": lambda on: [judge.resize(two(on)[0], n) for n in (8, 16, 32)],
    "faces.judge.load": lambda on: judge.load("b", device=on.device)(two(on)[0]),
    "faces.judge.logits": lambda on: judge.logits(two(on)[0], judge="b"),
    "faces.judge.attributes": lambda on: judge.attributes(two(on)[0]),
    "faces.judge.log_odds": lambda on: judge.log_odds(judge.logits(two(on)[0]), "hat", "yes"),
    "faces.judge.features": lambda on: judge.features(two(on)[0]),
    "faces.judge.raw_distance": raw,
    "faces.judge.distance": lambda on: judge.distance(*two(on)),
    "faces.judge.frechet": lambda on: judge.frechet(*two(on)),
    "faces.judge.frechet_of_components": lambda on: judge.frechet_of_components(
        *(on(judge.components(x)) for x in two(on))
    ),
    "faces.judge.components": lambda on: judge.components(two(on)[0]),
    "faces.judge.clip_similarity": lambda on: judge.clip_similarity(two(on)[0], ["a person"]),
    "faces.judge.directional_similarity": said,
    "faces.judge.embed_images": lambda on: judge.embed_images(two(on)[0]),
    "faces.judge.image_features": lambda on: judge.image_features(
        judge.clip(device=on.device)[0], two(on)[0]
    ),
    "faces.judge.embed_texts": lambda on: judge.embed_texts(["a person"], device=on.device),
    "faces.judge.clip": loaded_clip,
    "faces.pretrained.clip_score": lambda on: pretrained.clip_score(
        two(on)[0], "a person", model=clip_folder()
    ),
    "faces.pretrained.ImageTower": lambda on: (
        tower(on),
        pretrained.image_tower(None, device=on.device).weight_hash,
    ),
    "faces.pretrained.image_tower": tower,
    "faces.pretrained.clip_pixels": lambda on: pretrained.clip_pixels(two(on)[0], 32),
    "faces.quality.blurred": lambda on: quality.blurred(two(on)[0], 1.0),
    "faces.quality.noisy": lambda on: quality.noisy(two(on)[0], 0.1),
    "faces.quality.spliced": lambda on: quality.spliced(two(on)[0]),
    "faces.quality.chroma": lambda on: quality.chroma(two(on)[0]),
    "faces.attributes.standardised": lambda on: attributes.standardised(two(on)[0], ["smile"]),
    "faces.pairs.judged": lambda on: pairs.judged("smiling", *two(on)),
    "faces.pairs.shows": lambda on: pairs.shows(two(on)[0], "smile"),
    "faces.quality.saturated": lambda on: quality.saturated(two(on)[0]),
    "faces.quality.completeness": lambda on: quality.completeness(two(on)[0], components=2)(
        two(on)[1]
    ),
    "faces.quality.nearest_distance": lambda on: quality.nearest_distance(*two(on)),
}

DRAWN = "draws faces and words in NumPy, without torch"
EXCEPTIONS |= {name: DRAWN for name in public_calls() if name.startswith("faces.avatars.")}
EXCEPTIONS |= {
    "faces.avatars.to_float": "from an array to a tensor of the CPU",
    "faces.attributes.named": "a name in, a record out",
    "faces.attributes.spread": "a number of the rendered faces, measured on the CPU",
    "faces.captions.caption": DRAWN,
    "faces.captions.captions": DRAWN,
    "faces.captions.true_of": DRAWN,
    "faces.captions.tokenizer": DRAWN,
    "faces.captions.check": DRAWN,
    "faces.judge.metrics": "reads a file",
    "faces.judge.classes": "reads a file",
    "faces.pairs.render": DRAWN,
    "faces.portraits.definition": DRAWN,
    "faces.portraits.style": DRAWN,
    "faces.portraits.options": DRAWN,
    "faces.portraits.svg": DRAWN,
    "faces.portraits.rasterise": DRAWN,
    "faces.pretrained.clip": "loads a folder onto the CPU; `clip_score` moves it",
    "faces.pretrained.lpips": "needs the extra `metrics` and weights that the kit does not hold",
    "faces.pretrained.fid": "needs the extra `metrics` and weights that the kit does not hold",
}
ON_CPU |= {
    "faces.attributes.score": "scores are collected on the CPU, image by image",
    "faces.pairs.shows": "scores are collected on the CPU",
    "faces.judge.components": "the last step is in float64, for the Fréchet distance, on the CPU",
}
DESCENTS |= {"faces.quality.completeness"}  # least squares in many more columns than faces
