"""Named attributes of garments, and what an edit towards one of them did, scored by judge a.

The counterpart of the faces' attributes, in the same units: ℓ is judge a's log-odds of the classes
that count as having the attribute, s its standard deviation over held-out photographs.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lib.garments import judge, measures, photographs


class Attribute(NamedTuple):
    """Head and classes of the judge that count as having it, and heads tied to it by nature."""

    head: str
    classes: tuple[str, ...]
    tied: tuple[str, ...] = ()


# a shoe is wide, a tall thing is no shoe: neither can stay when the other comes or goes
ATTRIBUTES = {
    "shoe": Attribute("kind", ("sandal", "sneaker", "boot"), ("shape", "sleeves", "heel")),
    "bright": Attribute("brightness", ("bright",)),
    "tall": Attribute("shape", ("tall",), ("kind", "sleeves", "heel")),
    "long sleeves": Attribute("sleeves", ("long",), ("kind",)),
}


def named(name: str) -> Attribute:
    """The attribute called `name`; raises ValueError for any other, such as those of faces."""
    if name not in ATTRIBUTES:
        raise ValueError(
            f"attribute {name!r}: garments have {', '.join(ATTRIBUTES)}; what faces have, and the "
            "phrases of captions, mean nothing here"
        )
    return ATTRIBUTES[name]


def labels(images: Tensor) -> dict[str, Tensor]:
    """{attribute: (n,) bool}: which images have it, by judge a."""
    classes = _classes(_logits(images))
    return {name: _has(classes, attribute) for name, attribute in ATTRIBUTES.items()}


def log_odds(images: Tensor, name: str) -> Tensor:
    """ℓ of one attribute in units of s, (n,); images are clamped to [−1, 1]."""
    attribute = named(name)
    return _standard(_logits(images), attribute.head, *attribute.classes)


def score(plain: Tensor, edited: Tensor, name: str) -> tuple[Tensor, ...]:
    """(gains, lacking, having, leaks, kept) of edited images, as `Scores` of the faces holds them.

    gains (n,) are changes of ℓ / s; lacking before and having after (n,) bool; leaks (n, m) the
    standardised changes of the classes of all other heads, NaN where undefined; kept (n,) the share
    of the other heads whose class stays. Raises ValueError for unequal shapes.
    """
    attribute = named(name)
    if plain.shape != edited.shape:
        raise ValueError(f"plain {tuple(plain.shape)}, edited {tuple(edited.shape)}: not one shape")
    logits = _logits(plain), _logits(edited)
    old, new = map(_classes, logits)
    change = lambda *of: _standard(logits[1], *of) - _standard(logits[0], *of)  # noqa: E731
    leaks, same = [], []
    for head in (h for h in judge.CLASSES if h not in (attribute.head, *attribute.tied)):
        seen = _defined(old, head) & _defined(new, head)
        names = judge.CLASSES[head][
            : 1 if head in measures.TABLE else None
        ]  # two mirror each other
        leaks += [change(head, c).where(seen, torch.nan) for c in names]
        same.append((old[head] == new[head]).float().where(seen, torch.nan))
    lacking = _defined(old, attribute.head) & ~_has(old, attribute)
    kept = torch.stack(same, 1).nanmean(1)
    gains = change(attribute.head, *attribute.classes)
    return gains, lacking, _has(new, attribute), torch.stack(leaks, 1), kept


def distance(a: Tensor, b: Tensor) -> Tensor:
    """`judge.distance` of images clamped to [−1, 1], (n,): 0 equal, about 1 unrelated."""
    return judge.distance(a.float().clamp(-1, 1), b.float().clamp(-1, 1))


@cache
def spread(head: str, *classes: str) -> float:
    """s: standard deviation of ℓ over the carried photographs on which the class is defined."""
    logits = _logits(photographs.held_out().images)
    own = judge.log_odds(logits, head, *classes)
    return float(own[_defined(_classes(logits), head)].std())


def _standard(logits: dict[str, Tensor], head: str, *classes: str) -> Tensor:
    return judge.log_odds(logits, head, *classes) / spread(head, *classes)


def _logits(images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return judge.logits(images.detach().float().clamp(-1, 1).cpu())


def _classes(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Index of the likeliest class per head, (n,)."""
    return {head: z.argmax(1) for head, z in logits.items()}


def _has(classes: dict[str, Tensor], attribute: Attribute) -> Tensor:
    names = judge.CLASSES[attribute.head]
    chosen = torch.tensor([name in attribute.classes for name in names])
    return chosen[classes[attribute.head]] & _defined(classes, attribute.head)


def _defined(classes: dict[str, Tensor], head: str) -> Tensor:
    """Where an attribute can be seen: sleeves on tops, heels on shoes."""
    having = measures.TABLE[head].classes if head in measures.TABLE else judge.KINDS
    return torch.tensor([kind in having for kind in judge.KINDS])[classes["kind"]]
