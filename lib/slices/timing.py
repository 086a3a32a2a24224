"""When a border appears while the sampler runs, and when the decision it belongs to settles."""

import numpy as np

from lib.intervals import Values, as_array, as_numpy
from lib.slices.borders import flips_on
from lib.slices.relief import ridges


def appears(rises: Values, labels: Values) -> float:
    """Step (from 1) from which most flips of the final labels lie on ridges; NaN for none.

    rises: maps of differences of the predicted images, (steps, g, h). labels: of one attribute at
    the end, (g, h).
    """
    shares = [flips_on(ridges(rise), labels).share for rise in as_array(rises)]
    return _from_then_on(np.array(shares) > 0.5)


def settles(verdicts: Values, *, share: float = 0.9) -> float:
    """Step (from 1) from which a share of points (steps, n) keeps its final verdict."""
    verdicts = as_numpy(verdicts)
    return _from_then_on((verdicts == verdicts[-1]).mean(1) >= share)


def _from_then_on(holds: np.ndarray) -> float:
    """First step from which something holds to the end."""
    broken = np.flatnonzero(~holds)
    first = broken[-1] + 1 if len(broken) else 0
    return float(first + 1) if first < len(holds) else np.nan
