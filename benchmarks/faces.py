"""How fast the face set is made and read: images per second at 64 px."""

import tempfile
import time
from pathlib import Path

from lib.faces import avatars

COUNT, REPEATS = 256, 4


def _rate_of_a_core() -> float:
    """Images drawn and rendered per second of processor time: what one idle core gives."""
    faces, best = avatars.draw(COUNT), 0.0
    for _ in range(REPEATS):
        start = time.process_time()
        avatars.render_faces(faces, 64, processes=1)
        best = max(best, COUNT / (time.process_time() - start))
    return best


def _rate_of_the_cache() -> float:
    """Images read back per second of processor time."""
    best = 0.0
    with tempfile.TemporaryDirectory() as folder:
        avatars.load("train", COUNT, size=64, cache=Path(folder))
        for _ in range(REPEATS):
            start = time.process_time()
            avatars.to_float(avatars.load("train", COUNT, size=64, cache=Path(folder)).images)
            best = max(best, COUNT / (time.process_time() - start))
    return best


def main() -> list[dict]:
    """Rows for `make bench`."""
    rendered, read = _rate_of_a_core(), _rate_of_the_cache()
    return [
        {
            "claim": "faces rendered at 64 px in a second of two cores",
            "measured": 2 * rendered,
            "unit": "images/s",
            "target": ">= 600",
            "holds": 2 * rendered >= 600,
        },
        {
            "claim": "faces at 64 px, read from the cache against rendered",
            "measured": read / rendered,
            "unit": "times",
            "target": ">= 20",
            "holds": read / rendered >= 20,
        },
    ]
