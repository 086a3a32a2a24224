"""Named attributes of the faces, and what an edit towards one of them did, scored by judge a.

An edit is scored against the plain image of the same noise. ℓ is judge a's log-odds of the classes
that count as having the attribute, s its standard deviation over held-out rendered faces.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lib import intervals
from lib.diffusion.models import real_numbers
from lib.faces import avatars, judge
from lib.intervals import Interval, as_array


class Attribute(NamedTuple):
    """One attribute: head and classes of the judge, two captions, and heads tied to it by drawing.

    A hat hides hair length and colour, so that neither can stay when a hat comes or goes; an image
    where the attribute cannot be seen counts neither as lacking nor as having it.
    """

    head: str
    classes: tuple[str, ...]
    source: str
    target: str
    tied: tuple[str, ...] = ()


ATTRIBUTES = {
    "smile": Attribute("mouth", ("smile", "big smile"), "frowning", "smiling"),
    "glasses": Attribute("eyewear", ("glasses", "sunglasses"), "without glasses", "with glasses"),
    "beard": Attribute("facial_hair", ("goatee", "walrus", "pyramid"), "", "with a beard"),
    "hat": Attribute("hat", ("yes",), "", "with a hat", ("hair_length", "hair_colour")),
    "long hair": Attribute("hair_length", ("long",), "with short hair", "with long hair", ("hat",)),
    "blond hair": Attribute(
        "hair_colour", ("blond",), "with dark hair", "with blond hair", ("hat",)
    ),
    "pink hair": Attribute("hair_colour", ("pink",), "with dark hair", "with pink hair", ("hat",)),
}
REFERENCE = 2000  # held-out faces behind the standard deviations


class Scores(NamedTuple):
    """Per image: standardised gain, absence before, presence after, leaks into other classes, kept.

    gains (n,); lacking, having (n,) bool; leaks (n, m), NaN where the class is not defined; kept
    (n,) share of the other attributes that stay, NaN where none is defined.
    """

    gains: Tensor
    lacking: Tensor
    having: Tensor
    leaks: Tensor
    kept: Tensor

    @property
    def gain(self) -> float:
        """g = mean (ℓ(edit) − ℓ(plain)) / s."""
        return float(self.gains.mean())

    @property
    def flip_rate(self) -> float:
        """Share of the images lacking the attribute that get it; NaN where all have it."""
        return float(self.having[self.lacking].double().mean())

    @property
    def off_target(self) -> float:
        """O = mean over other classes of |mean standardised change|."""
        return float(self.leaks.nanmean(0).abs().nanmean())

    @property
    def unchanged(self) -> float:
        """Mean share of the other attributes whose class stays."""
        return float(self.kept.nanmean())


def named(name: str) -> Attribute:
    """The attribute called `name`; raises ValueError for one that the captions do not know."""
    if name not in ATTRIBUTES:
        raise ValueError(f"attribute {name!r} is unknown; choose one of {', '.join(ATTRIBUTES)}")
    return ATTRIBUTES[name]


def log_odds(images: Tensor, name: str) -> Tensor:
    """ℓ of one attribute for images (n, 3, h, w), clamped to [−1, 1] first; (n,)."""
    attribute = named(name)
    return judge.log_odds(_logits(images), attribute.head, *attribute.classes)


def standardised(images: Tensor, names: Sequence[str]) -> Tensor:
    """ℓ / s of several attributes, for images clamped to [−1, 1]; (n, names)."""
    found = _logits(images)
    chosen = [named(name)[:2] for name in names]
    return torch.stack([judge.log_odds(found, h, *c) / spread(h, c) for h, c in chosen], 1)


def labels(images: Tensor) -> dict[str, Tensor]:
    """{attribute: (n,) bool}: which images have it, by judge a.

    Hair needs a head without a hat; nobody's hair has a colour where it has no length.
    """
    classes = _classes(_logits(images))
    return {name: _has(classes, attribute) for name, attribute in ATTRIBUTES.items()}


def distance(a: Tensor, b: Tensor) -> Tensor:
    """`judge.distance` of images clamped to [−1, 1], (n,): 0 equal, about 1 unrelated."""
    return judge.distance(a.float().clamp(-1, 1), b.float().clamp(-1, 1))


def frechet_ratio(images: Tensor, base: Tensor, real: Tensor, draws: int = 200) -> Interval:
    """Fréchet distance of images over that of `base`, both to `real`; rows are drawn together."""
    sets = [judge.components(x.float().clamp(-1, 1)) for x in (images, base, real)]
    own = judge.frechet_of_components
    return interval(lambda a, b, r: own(a, r) / own(b, r), *sets, draws=draws)


def score(plain: Tensor, edited: Tensor, name: str) -> Scores:
    """Scores of edited images against the plain ones of the same noise, (n, 3, h, w) each.

    Images are clamped to [−1, 1]. Raises ValueError for an unknown attribute or unequal shapes.
    """
    attribute = named(name)
    if plain.shape != edited.shape:
        raise ValueError(
            f"plain and edited have shapes {tuple(plain.shape)} and {tuple(edited.shape)}; give "
            "one edited image for each plain one"
        )
    before, after = _logits(plain), _logits(edited)
    classes = _classes(before), _classes(after)
    change = _standardised(before, after, attribute.head, attribute.classes)
    lacking = _defined(classes[0], attribute.head) & ~_has(classes[0], attribute)
    having = _has(classes[1], attribute)
    leaks, same = [], []
    for head in (h for h in before if h not in (attribute.head, *attribute.tied)):
        defined = _defined(classes[0], head) & _defined(classes[1], head)
        moved = [_standardised(before, after, head, (c,)) for c in judge.classes()[head]]
        leaks += [m.where(defined, torch.nan) for m in moved]
        same.append((classes[0][head] == classes[1][head]).float().where(defined, torch.nan))
    leaks, kept = torch.stack(leaks, 1), torch.stack(same, 1).nanmean(1)
    return Scores(*(part.cpu() for part in (change, lacking, having, leaks, kept)))


class AtGain(NamedTuple):
    """What an edit costs where it reaches a gain: intervals, and the strength that reaches it."""

    strength: float
    off_target: Interval
    unchanged: Interval
    distance: Interval


def matched(
    strengths: Sequence[float],
    scores: Sequence[Scores],
    distances: Sequence[Tensor],
    gain: float,
    *,
    draws: int = 300,
) -> AtGain | None:
    """Costs at a gain, between rising strengths from "nothing changed"; None if none reaches it.

    scores and distances (n,) hold one entry for each strength. Resamples of the images that do not
    reach the gain are left out, so that the intervals are those of the edits that do. Raises
    ValueError for a gain that is not positive.
    """
    if not gain > 0:
        raise ValueError(f"gain = {gain}: give a positive number")
    cut, samples = len(scores), (*scores, *distances)
    reached = lambda *swept: _costs(strengths, swept[:cut], swept[cut:], gain)  # noqa: E731
    strength, *costs = reached(*samples)
    if np.isnan(strength):
        return None
    drawn = np.array(_resampled(reached, *samples, draws=draws)).T[1:]
    return AtGain(float(strength), *map(intervals.of_draws, costs, drawn))


def matched_gap(
    first: Sequence[Scores], second: Sequence[Scores], gain: float, *, draws: int = 300
) -> Interval:
    """Off-target change at a gain, of one sweep less that of another on the same images.

    first, second: scores at rising strengths. Images are drawn for both together; resamples in
    which one of them does not reach the gain are left out.
    """
    cut, none = len(first), torch.zeros(1)
    leak = lambda s: _costs([0.0] * len(s), s, [none] * len(s), gain)[1]  # noqa: E731
    return interval(lambda *s: leak(s[:cut]) - leak(s[cut:]), *first, *second, draws=draws)


def interval(
    statistic: Callable[..., float], *samples: Scores | Tensor, draws: int = 1000, seed: int = 0
) -> Interval:
    """Bootstrap of statistic(*samples) over images; several samples are drawn by the same rows.

    Samples are `Scores` or tensors whose first axis counts the images. Resamples where the
    statistic is not a number (no image lacks the attribute) are left out.
    """
    drawn = _resampled(statistic, *samples, draws=draws, seed=seed)
    return intervals.of_draws(statistic(*samples), drawn)


def total_variation(
    before: Mapping[str, ArrayLike], after: Mapping[str, ArrayLike], leave_out: str
) -> np.ndarray:
    """Off-target change: mean over the other attributes of ½ Σ |p_after - p_before|, (n,), 0 ... 1.

    before, after: {attribute: class probabilities (n, classes)}; leave_out: the edited attribute.
    Raises ValueError for an unknown attribute or one that is alone.
    """
    if leave_out not in before or len(before) < 2:
        raise ValueError(f"{leave_out!r} must be one of several attributes, here {list(before)}")
    others = [name for name in before if name != leave_out]
    change = [np.abs(as_array(after[a]) - as_array(before[a])).sum(1) / 2 for a in others]
    return np.mean(change, axis=0)


@lru_cache
def spread(head: str, classes: tuple[str, ...]) -> float:
    """s: standard deviation of ℓ over held-out rendered faces on which the class is defined."""
    found, defined = _reference()
    own = judge.log_odds(found, head, *classes)
    return float(own[defined[head]].std())


def _resampled(
    statistic: Callable, *samples: Scores | Tensor, draws: int, seed: int = 0
) -> list[float] | list[np.ndarray]:
    """The statistic of each draw of images; all samples by the same rows."""
    n = len(samples[0].gains if isinstance(samples[0], Scores) else samples[0])
    # `intervals.resamples` would draw others: these are the ones behind every committed number.
    picks = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    return [statistic(*(_rows(s, pick) for s in samples)) for pick in picks]


def _costs(strengths: Sequence, scores: Sequence, distances: Sequence, gain: float) -> np.ndarray:
    """Strength, off-target change, unchanged share and distance at a gain; NaN: not reached."""
    swept = zip(strengths, scores, distances, strict=True)
    rows = [(c, s.off_target, s.unchanged, float(d.mean())) for c, s, d in swept]
    gains = [0.0, *(s.gain for s in scores)]
    return intervals.read_off(gains, [(0.0, 0.0, 1.0, 0.0), *rows], gain)


def _rows(sample: Scores | Tensor, pick: Tensor) -> Scores | Tensor:
    return Scores(*(p[pick] for p in sample)) if isinstance(sample, Scores) else sample[pick]


@lru_cache
def _reference() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    faces = avatars.load("held-out", REFERENCE)
    parts = [_logits(avatars.to_float(faces.images[i : i + 256])) for i in range(0, REFERENCE, 256)]
    logits = {head: torch.cat([part[head] for part in parts]) for head in parts[0]}
    defined = {h: torch.from_numpy(faces.labels[h] != avatars.UNDEFINED) for h in logits}
    return logits, defined


def _standardised(before: dict, after: dict, head: str, classes: tuple[str, ...]) -> Tensor:
    change = judge.log_odds(after, head, *classes) - judge.log_odds(before, head, *classes)
    return change / spread(head, classes)


def _logits(images: Tensor) -> dict[str, Tensor]:
    return judge.logits(real_numbers(images, "images").detach().float().clamp(-1, 1))


def _classes(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Index of the likeliest class per head, (n,)."""
    return {head: z.argmax(1) for head, z in logits.items()}


def _has(classes: dict[str, Tensor], attribute: Attribute) -> Tensor:
    names = judge.classes()[attribute.head]
    chosen = torch.tensor([n in attribute.classes for n in names], device=classes["hat"].device)
    return chosen[classes[attribute.head]] & _defined(classes, attribute.head)


def _defined(classes: dict[str, Tensor], head: str) -> Tensor:
    """Where an attribute can be seen: no hair under a hat, no colour without hair."""
    no_hat = classes["hat"] == judge.classes()["hat"].index("no")
    if head == "hair_length":
        return no_hat
    if head == "hair_colour":
        return no_hat & (classes["hair_length"] != judge.classes()["hair_length"].index("none"))
    return torch.ones_like(no_hat)
