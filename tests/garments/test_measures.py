"""The rulers against garments that are drawn here, of which all is known."""

import pytest
import torch

from lib.garments import measures


def drawn(*boxes):
    """One image, background −1, with (top, bottom, left, right, grey) filled, ends included."""
    image = torch.full((1, 1, 32, 32), -1.0)
    for top, bottom, left, right, grey in boxes:
        image[..., top : bottom + 1, left : right + 1] = grey
    return image


TRUNK = (4, 27, 11, 20, 0.5)
LONG = drawn(TRUNK, (4, 27, 5, 9, 0.5), (4, 27, 22, 26, 0.5), (4, 8, 5, 26, 0.5))
SHORT = drawn(TRUNK, (4, 12, 5, 26, 0.5))
SHOE = drawn((16, 20, 4, 27, 0.0), (21, 23, 4, 10, 0.0), (21, 23, 24, 27, 0.0))


def test_brightness_is_the_mean_over_the_garment_alone():
    assert measures.brightness(drawn((0, 3, 0, 3, 0.25), (4, 7, 0, 3, 0.75))).item() == 0.5
    assert measures.brightness(drawn()).item() == -1.0


def test_shape_is_height_over_width():
    assert measures.shape(drawn(TRUNK)).item() == pytest.approx(2.4)
    assert measures.shape(drawn()).item() == 0.0


def test_long_sleeves_fill_the_strips_and_short_ones_leave_them_empty():
    assert measures.sleeves(LONG).item() == 1.0
    assert measures.sleeves(SHORT).item() == 0.0


def test_the_arch_before_a_heel_is_measured_in_pixels():
    assert measures.heel(SHOE).item() == 3.0
    assert measures.heel(drawn((16, 23, 4, 27, 0.0))).item() == 0.0


@pytest.mark.parametrize("measure", [m.of for m in measures.TABLE.values()])
def test_a_measure_does_not_depend_on_the_batch_or_the_place(measure):
    images = torch.cat([LONG, SHORT, SHOE, drawn()])
    together = measure(images)
    assert torch.equal(together, torch.cat([measure(image) for image in images.split(1)]))
    assert torch.equal(measure(images.roll((1, 2), (-2, -1))), together)


def test_a_part_is_taken_away_and_nothing_else():
    bare = measures.without(LONG, "sleeves")
    assert measures.sleeves(bare).item() == 0.0
    assert torch.equal(bare[..., :16, :], LONG[..., :16, :])
    shorter = measures.without(LONG, "hem")
    assert (
        torch.equal(shorter[..., :23, :], LONG[..., :23, :]) and (shorter[..., 23:, :] == -1).all()
    )
    darker = measures.without(LONG, "shade")
    assert measures.brightness(darker).item() == pytest.approx(0.0)
    assert torch.equal(darker == -1, LONG == -1)
    with pytest.raises(ValueError, match="'sleeves', 'hem' or 'shade'"):
        measures.without(LONG, "collar")
