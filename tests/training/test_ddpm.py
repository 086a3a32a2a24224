import json
from types import SimpleNamespace

import pytest
import torch

from lib.training import ddpm

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
COLOUR = torch.tensor([0.5, -0.25, 0.0]).view(1, 3, 1, 1)


def oracle(noisy, t):
    """The exact noise when every image of the data is the same plain colour."""
    alpha = ALPHAS[t.view(-1)].view(-1, 1, 1, 1)
    return SimpleNamespace(sample=((noisy - alpha.sqrt() * COLOUR) / (1 - alpha).sqrt()).float())


def colour(n):
    return COLOUR.expand(n, 3, 32, 32).contiguous()


def test_the_loss_of_the_exact_noise_is_zero():
    loss = ddpm.ddpm_task().loss(oracle, (colour(64),), torch.Generator().manual_seed(0))
    assert loss < 1e-8


def test_the_loss_weighs_an_error_by_the_noise_in_units_of_the_image():
    def shifted(noisy, t):
        return SimpleNamespace(sample=oracle(noisy, t).sample + 0.1)

    weights = (1 / ALPHAS - 1).sqrt()
    n = 4000
    loss = ddpm.ddpm_task().loss(shifted, (colour(n),), torch.Generator().manual_seed(1))
    expected, error = 0.01 * weights.mean(), 0.01 * weights.std() / n**0.5
    assert abs(loss.item() - expected) < 4 * error
    assert error < 0.05 * expected


@pytest.mark.parametrize("steps", [1, 20])
def test_sampling_with_the_exact_noise_gives_the_image(steps):
    images = ddpm.sample_ddpm(oracle, 3, steps=steps)
    assert torch.allclose(images, colour(3), atol=2e-3)


def test_a_saved_network_is_the_same_in_half_precision(tmp_path):
    network = ddpm.build_ddpm()
    metrics = {"training": {"steps": 1, "batch": 1}}
    ddpm._save_ddpm(network, tmp_path, metrics)
    again = ddpm.loaded("UNet2DModel", tmp_path / "unet")
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float()), key
    ddpm._save_ddpm(again, tmp_path / "again", metrics)  # a warm start tells no path
    config = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())
    assert config.get("_name_or_path", "") == ""
    files = [path.suffix for path in tmp_path.rglob("*") if path.is_file()]
    assert set(files) == {".json", ".md", ".safetensors"}


def test_saturated_images_are_counted():
    images = torch.zeros(4, 3, 4, 4)
    images[0] = 1.0
    images[1] = -0.8
    images[2, :, :1] = 1.0  # a quarter white
    images[3, 0] = 1.0  # pure red is a colour
    assert ddpm.saturated(images) == 0.5
