"""Laws of sheets: where an image lands, and in how many colours."""

import io

import matplotlib.image
import numpy as np
import pytest
import torch

from lib.kit import plots


def flat(*values):
    """Images of one colour each, (n, 3, 4, 5)."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)


def test_rows_run_down_and_columns_to_the_right():
    found = plots.sheet(flat(-1, 1, 1, -1, -1, 1).unflatten(0, (2, 3)))
    assert found.shape == (8, 15, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[::4, ::5, 0], [[0, 255, 255], [0, 0, 255]])


def test_channels_and_pixels_keep_their_places():
    image = torch.linspace(-1, 1, 3 * 4 * 5).view(1, 1, 3, 4, 5)
    found = plots.sheet(image, shades=256)
    expected = (image[0, 0].permute(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_coordinates_run_to_the_right_and_upwards():
    images = flat(*np.linspace(-1, 1, 6)).unflatten(0, (3, 2))  # 3 of α, 2 of β
    found = plots.sheet(plots.by_coordinates(images), shades=256)[::4, ::5, 0]
    assert found.tolist() == [[51, 153, 255], [0, 102, 204]]


def test_few_shades_make_a_small_file():
    noise = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes = []
    for shades in (12, 256):
        picture, buffer = plots.sheet(noise, shades=shades), io.BytesIO()
        assert len(np.unique(picture)) == shades
        matplotlib.image.imsave(buffer, picture, format="png")
        sizes.append(buffer.tell())
    assert sizes[0] < 0.65 * sizes[1]


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.zeros(2, 3, 4, 4), {}, r"\(2, 3, 4, 4\).*expected \(rows"),
        (torch.zeros(1, 2, 4, 4, 4), {}, "expected"),
        (torch.zeros(0, 2, 3, 4, 4), {}, "expected"),
        (torch.zeros(1, 1, 3, 2, 2), {"shades": 1}, "2 ... 256"),
        (torch.full((1, 1, 3, 2, 2), torch.nan), {}, "finite"),
    ],
)
def test_what_is_no_sheet_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        plots.sheet(images, **options)
