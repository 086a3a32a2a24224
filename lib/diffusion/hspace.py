"""h-space: a U-Net's deepest feature map, read, shifted, and edited through (Asyrp).

Kwon, Jeong and Uh, "Diffusion Models Already Have a Semantic Latent Space" (2023). h is the output
of the mid-block, before the first skip connection joins it; the skips stay as they are.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lib.diffusion.deltas import Delta, Sum, combine, constant, finite_number, per_step
from lib.diffusion.models import Generator
from lib.diffusion.sampling import (
    _bar,
    _batch,
    _downward,
    _latents,
    _per_row,
    ddim,
    deviation,
    in_batches,
    step_noise,
    time_grid,
    update,
)

__all__ = [
    "Delta",
    "Edit",
    "asyrp",
    "capture",
    "combine",
    "constant",
    "edit",
    "h_shape",
    "inject",
    "per_step",
    "predictions",
    "reconstruct",
]

Rows = Sequence[bool] | Sequence[int] | slice | None
MIDDLE = "mid_block"
_shifted: WeakSet[nn.Module] = WeakSet()


class Edit(NamedTuple):
    """Edited images and the plain ones of the same latents and noise, (n, c, h, w) each."""

    edited: Tensor
    reconstruction: Tensor


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
    generator: Generator, delta: Delta, *, rows: Rows = None, layer: str = MIDDLE
) -> Iterator[None]:
    """Shift h by delta(h, t) in every pass of the network, h <- h + Δh, until the block ends.

    delta maps h (n, channels, height, width) and an integer time to Δh of that shape, or of one
    sample's. rows: which rows of the network's batch are shifted, as a slice, indices, or booleans;
    booleans are repeated where guidance makes the batch larger. layer: as in `capture`.
    Raises ValueError for a second injection on the same U-Net, a model without the block, and a Δh
    of another shape or trained on another model.
    """
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


def h_shape(generator: Generator, *, layer: str = MIDDLE) -> tuple[int, ...]:
    """(channels, height, width) of one sample's h, read off a dummy pass."""
    with torch.no_grad(), capture(generator, layer=layer) as h:
        generator.epsilon(torch.zeros_like(generator.noise(1, 0)), 0)
    return tuple(h[0].shape[1:])


def predictions(
    generator: Generator,
    x: Tensor,
    t: int,
    delta: Delta,
    *,
    symmetric: bool = False,
    layer: str = MIDDLE,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    negative: str = "",
) -> tuple[Tensor, Tensor]:
    """The pair eps(x | Δh), for P, and eps(x), for D, from one call on twice the rows.

    symmetric: the shifted one twice, from one call on the rows alone. With guidance each of the two
    is guided by its own pair of rows. x: (n, *latent_shape).
    """
    options = {"guidance": guidance, "negative": negative}
    if symmetric:
        with inject(generator, delta, layer=layer):
            eps = generator.epsilon(x, t, prompt=prompt, **options)
        return eps, eps
    twice = prompt if prompt is None or isinstance(prompt, str) else [*prompt, *prompt]
    shifted = [True] * len(x) + [False] * len(x)
    with inject(generator, delta, rows=shifted, layer=layer):
        both = generator.epsilon(torch.cat([x, x]), t, prompt=twice, **options)
    return both.chunk(2)


def asyrp(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float,
    t_boost: float = 0,
    strength: float = 1.0,
    trained_steps: int | None = None,
    symmetric: bool = False,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    layer: str = MIDDLE,
    **options: object,
) -> Edit:
    """Edited images and their reconstruction, with the same boost noise: `edit`, `reconstruct`.

    Arguments as in `edit`; `options` (negative, first, decode, batch, progress) go to both.
    """
    run = {"steps": steps, "t_boost": t_boost, "seed": seed, "prompt": prompt, "guidance": guidance}
    edited = edit(
        generator,
        latents,
        delta,
        t_edit=t_edit,
        strength=strength,
        trained_steps=trained_steps,
        symmetric=symmetric,
        layer=layer,
        **run,
        **options,
    )
    return Edit(edited, reconstruct(generator, latents, **run, **options))


def edit(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float,
    t_boost: float = 0,
    strength: float = 1.0,
    trained_steps: int | None = None,
    symmetric: bool = False,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    negative: str = "",
    seed: int = 0,
    first: int = 0,
    layer: str = MIDDLE,
    decode: bool = True,
    batch: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Edited images (n, c, h, w) of latents (n, *latent_shape) at the noisiest time.

    Three phases (Asyrp, Sec. 3 and 4): x' = sqrt(alpha') P(eps(x | Δh)) + D(eps(x)) while
    t >= t_edit, then plain DDIM, then eta = 1 with fresh noise while t < t_boost. P is not clipped.
    strength: any finite multiple of Δh; trained_steps: S of a Δh found with another number of
    steps, which multiplies it by S / steps. symmetric: eps(x | Δh) in both terms. seed, first: the
    noise of the boost is keyed by (seed, first + row, time). layer: where Δh is added.
    prompt, guidance, negative, decode, batch, progress: as in `sampling.ddim`.
    Raises ValueError for times or numbers out of range and what `inject` refuses; warns where the
    edit and the boost overlap.
    """
    x = _latents(generator, latents, finite=True)
    _check_phases(t_edit, t_boost, len(generator.alphas))
    scale = finite_number(strength, "strength") * _step_ratio(trained_steps, steps)
    shift, prompts = Sum((delta,), (scale,)), _per_row(prompt, len(x))
    down = _downward(time_grid(steps, len(generator.alphas)), None, None)
    pairs = [(t, t_next) for t, t_next in down if t >= t_edit]
    rest = down[len(pairs) :]
    text = {"guidance": guidance, "negative": negative}

    def run(rows: slice) -> Tensor:
        part, keys = x[rows], range(first + rows.start, first + rows.stop)
        own = {"symmetric": symmetric, "layer": layer, "prompt": prompts(rows), **text}
        for t, t_next in pairs:
            eps, direction = predictions(generator, part, t, shift, **own)
            alpha, alpha_next, eta = generator.alpha(t), generator.alpha(t_next), float(t < t_boost)
            noisy = deviation(alpha, alpha_next, eta) > 0
            noise = step_noise(generator, keys, seed, t) if noisy else None
            part = update(
                part, eps, alpha, alpha_next, eta=eta, noise=noise, eps_direction=direction
            )
            bar.update(len(part))
        return part if rest or not decode else generator.decode(part)

    rows = _batch(generator, batch)
    with torch.no_grad(), _bar(len(x) * len(pairs), "editing", progress) as bar:
        x = in_batches(run, len(x), rows if symmetric else max(rows // 2, 1))
    if not rest:
        return x
    plain = {"prompt": prompt, "seed": seed, "first": first, "decode": decode, "batch": batch}
    return _plain(generator, x, rest[0][0], t_boost, steps, progress=progress, **plain, **text)


def reconstruct(
    generator: Generator, latents: Tensor, *, steps: int, t_boost: float = 0, **options: object
) -> Tensor:
    """The plain images of the same latents: DDIM, then eta = 1 with the noise of `edit`.

    `options` go to `sampling.ddim`. Raises ValueError as `edit` does.
    """
    train_steps = len(generator.alphas)
    _check_phases(train_steps, t_boost, train_steps)
    top = time_grid(steps, train_steps)[-1]
    return _plain(generator, latents, top, t_boost, steps, **options)


def _plain(
    generator: Generator, x: Tensor, start: int, t_boost: float, steps: int, **options: object
) -> Tensor:
    """The two phases without Δh, from latents at a grid point `start`."""
    times = [t for t in time_grid(steps, len(generator.alphas)) if t <= start]
    noisy = [t for t in times if t < t_boost]
    if 0 < len(noisy) < len(times):
        x = ddim(generator, x, steps=steps, start=start, stop=noisy[-1], **options)
        start = noisy[-1]
    return ddim(generator, x, steps=steps, start=start, eta=float(bool(noisy)), **options)


@contextmanager
def _tap(generator: Generator, layer: str, see: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Let see(h, t) replace the output of one block in every pass of the U-Net."""
    unet, block = generator.unet, _block(generator, layer)
    state = {"t": None, "fired": 0}

    def before(module: nn.Module, args: tuple) -> None:
        state.update(t=args[1], fired=0)

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
        handles.append(unet.register_forward_pre_hook(before))
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


def _mask(rows: Rows, n: int) -> Tensor:
    """Booleans (n,) of the chosen rows."""
    index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
    if not isinstance(rows, slice) and index.dtype == torch.bool:
        if index.ndim != 1 or len(index) == 0 or n % len(index):
            raise ValueError(f"rows has {index.numel()} booleans for a batch of {n}; give {n}")
        return index.repeat(n // len(index))
    mask = torch.zeros(n, dtype=torch.bool)
    try:
        mask[index] = True
    except IndexError as error:
        raise ValueError(f"rows = {rows} does not fit a batch of {n}; choose 0 ... {n - 1}") from (
            error
        )
    return mask


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


def _check_phases(t_edit: float, t_boost: float, last: int) -> None:
    for name, t in (("t_edit", t_edit), ("t_boost", t_boost)):
        if not 0 <= t <= last:
            raise ValueError(f"{name} = {t}: choose a training time in 0 ... {last}")
    if t_boost > t_edit:
        warnings.warn(
            f"t_boost = {t_boost} lies above t_edit = {t_edit}: steps between them are edited and "
            "noisy",
            stacklevel=3,
        )


def _step_ratio(trained_steps: int | None, steps: int) -> float:
    if trained_steps is None:
        return 1.0
    if trained_steps < 1:
        raise ValueError(f"trained_steps = {trained_steps}: give the number of steps of training")
    return trained_steps / steps
