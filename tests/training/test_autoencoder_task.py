"""Training of the Diffusion Autoencoder: its loss, and the folder that is shipped."""

import pytest
import torch

from lib.hspace.autoencoder import Autoencoder
from lib.training import autoencoder, ddpm
from lib.training.task import MODELS


def smooth(n):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


def draws(seed=1):
    return torch.Generator().manual_seed(seed)


def test_before_training_the_loss_is_that_of_the_u_net_alone_whose_weights_get_no_gradient():
    network, images = Autoencoder(autoencoder.base()), smooth(4)

    def plain(noisy, t):
        return autoencoder.base().unet(noisy, t)

    own = autoencoder._loss(network, (images,), draws())
    alone = ddpm.ddpm_task().loss(plain, (images,), draws()).item()
    assert own.item() == pytest.approx(alone, rel=1e-5)  # its α_t are rounded elsewhere
    own.backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"join.4.weight", "join.4.bias"}  # the layer that starts at zero
    assert all(p.grad is None for p in autoencoder.base().unet.parameters())


def test_the_shipped_folder_continues_where_it_was_saved(tmp_path):
    network = Autoencoder(autoencoder.base())
    metrics = {"training": {"steps": 1, "batch": 1}, "round_trip": 0.01}
    autoencoder._save(network, tmp_path, metrics)
    again = autoencoder.autoencoder_task().load(tmp_path)
    assert again.training and all(p.requires_grad for p in again.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "model.safetensors"}


def test_the_shipped_autoencoder_gives_held_out_faces_back():
    network = autoencoder.autoencoder_task().load(MODELS / "avatars-dae").eval()
    found = autoencoder.measure_autoencoder(network, count=4)
    assert found["round_trip"] < 0.02
    assert found["round_trip"] < found["error_with_noise_drawn_anew"] < 0.1
