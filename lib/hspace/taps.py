"""Taps on a U-Net: h, the output of its deepest block, read and shifted in every pass.

Kwon, Jeong and Uh, "Diffusion Models Already Have a Semantic Latent Space" (2023). h is the output
of the mid-block, before the first skip connection joins it; the skips stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lib.diffusion.models import Generator
from lib.hspace.deltas import Delta, no_change

MIDDLE = "mid_block"
_shifted: WeakSet[nn.Module] = WeakSet()


@contextmanager
def capture(generator: Generator, *, layer: str = MIDDLE) -> Iterator[dict[int, Tensor]]:
    """Collect h at every training time that the network sees: {t: (n, channels, height, width)}.

    Rows come in the order of the calls, so that a run in batches gives those of its latents; with
    guidance each call holds the negative rows first. Opened inside `inject`, it sees h + Δh, and
    outside, h. layer: another block of the U-Net, such as "up_blocks.0". Raises ValueError for a
    model without that block.
    """
    found: dict[int, Tensor] = {}

    def keep(h: Tensor, t: int) -> Tensor:
        found[t] = torch.cat([found[t], h]) if t in found else h.clone()
        return h

    with _tap(generator, layer, keep):
        yield found


@contextmanager
def inject(
    generator: Generator, delta: Delta, *, rows: Sequence[bool] | None = None, layer: str = MIDDLE
) -> Iterator[None]:
    """Shift h by delta(h, t) in every pass of the network, h <- h + Δh, until the block ends.

    delta maps h (n, channels, height, width) and an integer time to Δh of that shape, or of one
    sample's. rows: which rows of the network's batch are shifted, booleans, repeated where guidance
    makes the batch larger. layer: as in `capture`.
    Raises ValueError for a second injection on the same U-Net, a model without the block, and a Δh
    of another shape or trained on another model.
    """
    if not callable(delta):
        raise ValueError(no_change(delta))
    _check_owner(generator, delta)

    def shift(h: Tensor, t: int) -> Tensor:
        if rows is None:
            return h + _fitting(delta(h, t), h)
        chosen = _mask(rows, len(h)).to(h.device)
        moved = h.clone()
        moved[chosen] = h[chosen] + _fitting(delta(h[chosen], t), h[chosen])
        return moved

    if generator.unet in _shifted:
        raise ValueError(
            "this U-Net is being shifted already; leave that block first, or add the two shifts "
            "with hspace.combine"
        )
    with _tap(generator, layer, shift):
        _shifted.add(generator.unet)
        try:
            yield
        finally:
            _shifted.discard(generator.unet)


@contextmanager
def shared_encoder(generator: Generator, n: int) -> Iterator[None]:
    """In calls on x twice, (2 n, ...), run the path down to h once: it does not know of a Δh.

    The U-Net gets the second n rows of each pair alone, and what its up blocks take, h, skips, time
    and text, is repeated; the answer is that of the plain call but for rounding. `capture` outside
    sees h once. A network that is no UNet2DModel or UNet2DConditionModel, or divides its answer by
    the time, is called as it is.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel

    unet = generator.unet
    known = type(unet) in (UNet2DModel, UNet2DConditionModel) and unet.mid_block is not None
    if not known or unet.config.time_embedding_type == "fourier":
        yield
        return

    def once(v: Tensor) -> Tensor:
        return torch.cat(v.split(n)[1::2])

    def twice(v: Tensor) -> Tensor:
        return torch.cat([part for part in v.split(n) for _ in range(2)])

    rows = 0  # that the encoder runs on

    def halve(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        nonlocal rows
        rows = len(args[0]) // 2
        return _of_length(2 * rows, once, args), _of_length(2 * rows, once, options)

    def double(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        return _of_length(rows, twice, args), _of_length(rows, twice, options)

    handles = [
        unet.register_forward_pre_hook(halve, with_kwargs=True),
        unet.mid_block.register_forward_hook(lambda module, args, h: twice(h)),
        *(b.register_forward_pre_hook(double, with_kwargs=True) for b in unet.up_blocks),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of_length(n: int, change: Callable[[Tensor], Tensor], value: object) -> object:
    """The value with every tensor of n rows in it changed."""
    if isinstance(value, tuple):
        return tuple(_of_length(n, change, part) for part in value)
    if isinstance(value, dict):
        return {name: _of_length(n, change, part) for name, part in value.items()}
    return change(value) if isinstance(value, Tensor) and value.ndim and len(value) == n else value


def h_shape(generator: Generator, *, layer: str = MIDDLE) -> tuple[int, ...]:
    """(channels, height, width) of one sample's h, read off a dummy pass."""
    labels = {} if generator.classes is None else {"class_labels": 0}
    with torch.no_grad(), capture(generator, layer=layer) as h:
        generator.epsilon(torch.zeros_like(generator.noise(1, 0)), 0, **labels)
    return tuple(h[0].shape[1:])


@contextmanager
def _tap(generator: Generator, layer: str, see: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Let see(h, t) replace the output of one block in every pass of the U-Net."""
    unet, block = generator.unet, _block(generator, layer)
    state = {"t": None, "fired": 0}

    def before(module: nn.Module, args: tuple, options: dict[str, object]) -> None:
        state.update(t=args[1] if len(args) > 1 else options.get("timestep"), fired=0)

    def at(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        state["fired"] += 1
        if isinstance(output, tuple):  # a down block: its skips go on unchanged
            return (see(output[0], _one_time(state["t"])), *output[1:])
        return see(output, _one_time(state["t"]))

    def after(module: nn.Module, args: tuple, output: object) -> None:
        if state["fired"] != 1:
            raise RuntimeError(f"{layer} ran {state['fired']} times in one pass, expected once")

    handles = []
    try:
        handles.append(unet.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(at))
        handles.append(unet.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block(generator: Generator, layer: str) -> nn.Module:
    block: object = generator.unet
    for name in layer.split("."):
        block = getattr(block, name, None)
    if not isinstance(block, nn.Module):
        raise ValueError(
            f"{generator.source or 'this model'} has no {layer}: h-space needs a UNet2DModel or "
            "UNet2DConditionModel with a mid-block; other layers are up_blocks.i and down_blocks.i"
        )
    if getattr(generator.unet, "_compiled_call_impl", None) is not None:
        raise ValueError("a compiled U-Net may ignore hooks; load the model without fast=True")
    return block


def _one_time(t: Tensor | int) -> int:
    times = set(torch.as_tensor(t).reshape(-1).tolist())
    if len(times) != 1:
        raise ValueError(f"one pass holds the times {sorted(times)}; give all rows the same time")
    return int(times.pop())


def _mask(rows: Sequence[bool], n: int) -> Tensor:
    """Booleans (n,) of the chosen rows, repeated where guidance makes the batch larger."""
    chosen = torch.as_tensor(rows)
    if chosen.ndim != 1 or chosen.dtype != torch.bool or not len(chosen) or n % len(chosen):
        raise ValueError(f"rows = {rows} for a batch of {n}: give {n} booleans")
    return chosen.repeat(n // len(chosen))


def _fitting(change: Tensor, h: Tensor) -> Tensor:
    shape = tuple(change.shape)
    if shape not in (tuple(h.shape), (1, *h.shape[1:]), tuple(h.shape[1:])):
        raise ValueError(
            f"Δh has shape {shape}, but h of this model is {tuple(h.shape[1:])} for each of "
            f"{len(h)} rows; find Δh on the same model and layer"
        )
    return change.to(h.dtype)


def _check_owner(generator: Generator, delta: Delta) -> None:
    owners = getattr(delta, "owners", frozenset())
    if owners and owners != {generator.weight_hash}:
        raise ValueError(
            f"Δh was found on the model with weights {', '.join(sorted(owners))}, and this is "
            f"{generator.weight_hash}; train it on this model"
        )
