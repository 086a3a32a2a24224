"""Passes of the embedded U-Net on one core against OpenVINO's float32 (the extra `bench`).

The rival gets the traced network, compiled for the very shape it is asked for: what a user would
gain by exporting the model. At the kit's batches there is nothing to gain: 0.98 times (one core,
64 images). A single image is another matter: there our pass takes 1.8 times as long as OpenVINO's,
because Python calls one layer after the other; hence samplers that take many images at a time.
"""

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from lib.diffusion import models

try:
    import openvino
except ImportError:
    openvino = None

IMAGES, TURNS, TARGET = 64, 10, 0.95


class Plain(torch.nn.Module):
    """x, t -> epsilon as plain tensors, which is what can be traced."""

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, return_dict=False)[0]


def compiled(unet: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable:
    """The rival's network for one thread and the shapes of the inputs."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        shapes = [tuple(value.shape) for value in inputs]
        model = openvino.convert_model(Plain(unet), example_input=inputs, input=shapes)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.compile_model(model, "CPU", options)


def ratio() -> float:
    """Processor time of OpenVINO over ours, each the best of runs that take turns."""
    generator = models.load("avatars-ddpm", device="cpu")
    x, t = generator.noise(IMAGES, 0), torch.full((IMAGES,), 500)
    rival = compiled(generator.unet, (x, t))

    def theirs() -> np.ndarray:
        return rival((x.numpy(), t.numpy()))[0]

    def ours() -> np.ndarray:
        return generator.epsilon(x, 500).numpy()

    np.testing.assert_allclose(theirs(), ours(), atol=1e-3)
    best = dict.fromkeys((theirs, ours), np.inf)
    for run in TURNS * list(best):
        start = time.process_time()
        run()
        best[run] = min(best[run], time.process_time() - start)
    return best[theirs] / best[ours]


def main() -> list[dict]:
    """One row; none without OpenVINO."""
    if openvino is None:
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = ratio()
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "claim": f"U-Net, 32 px, {IMAGES} images, one core: speed against OpenVINO float32",
            "measured": measured,
            "unit": "times as fast",
            "target": f">= {TARGET}",
            "holds": measured >= TARGET,
        }
    ]
