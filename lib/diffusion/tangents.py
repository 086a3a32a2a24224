"""The derivative of a sampler along directions: a linearised network takes tangents as its rows.

A diffusers network is a chain of modules joined by sums and concatenations, which are linear. One
plain pass keeps what each module needs of its input; a pass in mode "tangent" then replaces each
module by its derivative there, so that the same network maps dx to dε. It costs about one more
plain pass for each direction, on the fused kernels, where `torch.func.jvp` needs modules rewritten.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lib.diffusion.differentiable import CODEBOOK, attend
from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, downward, update

aten = torch.ops.aten


class Tape:
    """What the modules keep during a plain pass, in the order of their calls, read in a tangent."""

    def __init__(self) -> None:
        self.values: list = []
        self.tangent, self.position = False, 0

    def keep(self, *values: Tensor) -> None:
        """Append what one module needs for its derivative."""
        self.values.append(values)

    def next(self) -> tuple[Tensor, ...]:
        """What the module at hand kept."""
        self.position += 1
        return self.values[self.position - 1]

    def start(self, *, tangent: bool) -> None:
        """Begin a plain pass, which forgets the one before, or a tangent pass at its point."""
        self.tangent, self.position = tangent, 0
        if not tangent:
            self.values = []


def _convolution(module: nn.Conv2d, tape: Tape, x: Tensor) -> Tensor:
    return module._conv_forward(x, module.weight, None if tape.tangent else module.bias)


def _linear(module: nn.Linear, tape: Tape, x: Tensor) -> Tensor:
    return nn.functional.linear(x, module.weight, None if tape.tangent else module.bias)


def _group_norm(module: nn.GroupNorm, tape: Tape, x: Tensor) -> Tensor:
    """y = w (x - mean) r + b. ∂y/∂x = w r (1 - 11ᵀ/m - yyᵀ/m), symmetric but for w.

    Hence the kernel of the backward derivative is that of the forward derivative as well.
    """
    x = _dense(x)
    sizes = len(x), x.shape[1], x[0, 0].numel(), module.num_groups
    if not tape.tangent:
        y, mean, r = aten.native_group_norm(x, module.weight, module.bias, *sizes, module.eps)
        tape.keep(x, mean, r)
        return y
    dx = aten.native_group_norm_backward(x, *tape.next(), None, *sizes, [True, False, False])[0]
    return dx.mul_(module.weight.view(1, -1, *[1] * (x.ndim - 2)))


def _dense(x: Tensor) -> Tensor:
    """x in one piece, as the kernels ask, with the channels innermost if they are."""
    if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous()
    regular = x.stride(0) == x[0].numel()  # a single row may have any stride and pass for dense
    return x if regular else x.clone(memory_format=torch.channels_last)


def _layer_norm(module: nn.LayerNorm, tape: Tape, x: Tensor) -> Tensor:
    shape = module.normalized_shape
    if not tape.tangent:
        y, mean, r = aten.native_layer_norm(x, shape, module.weight, module.bias, module.eps)
        tape.keep(x, mean, r)
        return y
    point, mean, r = tape.next()
    only_x = [True, False, False]
    return (
        module.weight
        * aten.native_layer_norm_backward(x, point, shape, mean, r, None, None, only_x)[0]
    )


def _silu(module: nn.SiLU, tape: Tape, x: Tensor) -> Tensor:
    if tape.tangent:
        return aten.silu_backward(x, *tape.next())
    tape.keep(x)
    return nn.functional.silu(x)


def _gated_gelu(module: nn.Module, tape: Tape, x: Tensor) -> Tensor:
    """h gelu(g) of (h, g) = proj(x)."""
    h, gate = module.proj(x).chunk(2, -1)
    if not tape.tangent:
        tape.keep(h, gate)
        return h * nn.functional.gelu(gate)
    value, at = tape.next()
    return h * nn.functional.gelu(at) + value * aten.gelu_backward(gate, at)


def _attention(
    module: nn.Module,
    tape: Tape,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    **_: object,
) -> Tensor:
    """o = P v with P = softmax(s), s = q kᵀ / √d; dP = P (ds - Σ P ds), do = dP v + P dv."""
    if tape.tangent and encoder_hidden_states is not None:
        encoder_hidden_states = torch.zeros_like(encoder_hidden_states)  # the text does not move
    return attend(module, hidden_states, encoder_hidden_states, partial(_weigh, tape, module.scale))


def _weigh(tape: Tape, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not tape.tangent:
        weights = (scale * q @ k.transpose(1, 2)).softmax(-1)
        tape.keep(q, k, v, weights)
        return weights @ v
    at_q, at_k, at_v, weights = tape.next()
    scores = scale * (q @ at_k.transpose(1, 2) + at_q @ k.transpose(1, 2))
    change = weights * (scores - (weights * scores).sum(-1, keepdim=True))
    return change @ at_v + weights @ v


def _scale_and_shift(module: nn.Linear, tape: Tape, x: Tensor) -> Tensor:
    """(scale, shift) of the time in y (1 + scale) + shift: dy is scaled alike, and not shifted."""
    if not tape.tangent:
        value = nn.functional.linear(x, module.weight, module.bias)
        tape.keep(value)
        return value
    scale, shift = tape.next()[0].chunk(2, dim=1)
    return torch.cat([scale, torch.zeros_like(shift)], dim=1)


def _unmoved(module: nn.Module, tape: Tape, given: Tensor) -> Tensor:
    """An embedding of the time or of a class, neither of which moves with x."""
    value = type(module).forward(module, given)
    return torch.zeros_like(value) if tape.tangent else value


def _rules() -> dict[type, Callable]:
    """The derivative of every kind of module that is not linear, or has a bias."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import Timesteps

    return {
        nn.Conv2d: _convolution,
        nn.Linear: _linear,
        nn.GroupNorm: _group_norm,
        nn.LayerNorm: _layer_norm,
        nn.SiLU: _silu,
        GEGLU: _gated_gelu,
        Attention: _attention,
        Timesteps: _unmoved,
        nn.Embedding: _unmoved,
    }


def _patches(parts: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Callable]]:
    """All modules that need a rule, and their rule; raises ValueError for one that has none."""
    from diffusers.models.autoencoders.vae import VectorQuantizer
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    # Linear as they are: an upsampling without a convolution, and an empty list, have no children.
    linear = (nn.AvgPool2d, nn.Dropout, nn.Identity, nn.ModuleList, Upsample2D)
    rules = _rules()
    modules = [module for part in parts for module in part.modules()]
    scaled = {
        id(block.time_emb_proj)
        for block in modules
        if isinstance(block, ResnetBlock2D) and block.time_embedding_norm == "scale_shift"
    }
    for module in modules:
        if isinstance(module, VectorQuantizer):
            raise ValueError(f"tangents: {CODEBOOK}")
        if id(module) in scaled:
            yield module, _scale_and_shift
        elif type(module) in rules and not _has_more(module):
            yield module, rules[type(module)]
        elif type(module) in rules or not any(module.children()) and not isinstance(module, linear):
            raise ValueError(
                f"no tangent rule for a module {type(module).__name__}; use torch.func.jvp, as "
                "geometry.metric.pullback_metric does, with a model loaded differentiable=True"
            )


def _has_more(module: nn.Module) -> bool:
    """Whether a module does more than its rule knows: a norm without weights, more norms inside."""
    more = ("spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
    without = isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is None
    return without or any(getattr(module, name, None) is not None for name in more)


@contextmanager
def linearised(*parts: nn.Module) -> Iterator[Tape]:
    """Let the tape decide whether the networks map x to y or, at the last x, dx to dy.

    Raises ValueError for a module without a rule, and for a network that is compiled or hooked.
    """
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        raise ValueError("a compiled network ignores tangents; load the model without fast=True")
    if any(module._forward_hooks for part in parts for module in part.modules()):
        raise ValueError("a network with hooks has no tangents; leave hspace.capture or inject")
    tape, patched = Tape(), list(_patches(parts))
    try:
        for module, rule in patched:
            module.forward = partial(rule, module, tape)
        yield tape
    finally:
        for module, _ in patched:
            module.__dict__.pop("forward", None)


def pushforward(
    generator: Generator,
    latents: Tensor,
    tangents: Sequence[Tensor],
    *,
    steps: int,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    class_labels: int | Sequence[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Images of latents (n, *latent_shape), and their derivatives along each of the tangents.

    A tangent has the shape of the latents; with x' = DDIM(x) its derivative is (∂x'/∂x) dx, exact,
    through all steps and the decoder, as `torch.func.jvp` of `sampling.ddim` gives it. prompt,
    guidance, class_labels: as there. Raises ValueError for a network with a module that has no
    rule, and for one with a codebook.
    """
    text = {"prompt": prompt, "guidance": guidance}
    if class_labels is not None:
        text["class_labels"] = class_labels
    pairs = downward(generator, steps)
    networks = [part for part in (generator.unet, generator.autoencoder) if part is not None]
    x, *moves = (x.to(generator.device, generator.dtype) for x in (latents, *tangents))
    with torch.no_grad(), linearised(*networks) as tape:
        for t, t_next in pairs:
            step = {"alpha": generator.alpha(t), "alpha_next": generator.alpha(t_next)}
            predict = partial(generator.epsilon, t=t, **text)
            tape.start(tangent=False)
            eps = predict(x)
            for i, dx in enumerate(moves):
                tape.start(tangent=True)
                moves[i] = update(dx, predict(dx), **step)
            x = update(x, eps, **step)
        tape.start(tangent=False)
        images = generator.decode(x)
        for i, dx in enumerate(moves):
            tape.start(tangent=True)
            moves[i] = generator.decode(dx)
    return images, moves


def top_directions(
    generator: Generator, latent: Tensor, k: int, *, steps: int, rounds: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples of J = ∂image/∂x_T at one latent: U (m, k), S (k,), V (d, k).

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, Algorithm 4.4) on k + 4 random
    images: Jᵀ by reverse mode through all steps, J by `pushforward`; what is left out of S shrinks
    as (s_{k+5} / s_k)^(2 rounds + 1). latent: (1, *latent_shape). Raises ValueError as
    `pushforward`.
    """
    rows = latent.expand(k + 4, *latent.shape[1:]).to(generator.device, generator.dtype)

    def back(w: Tensor) -> Tensor:
        """Jᵀ of columns (m, k + 4)."""
        with torch.enable_grad():
            x = rows.clone().requires_grad_(True)
            images = ddim(generator, x, steps=steps, differentiable=True).flatten(1)
            return torch.autograd.grad((images * w.T).sum(), x)[0].flatten(1).T

    def ahead(v: Tensor) -> Tensor:
        moves = [v.T.reshape(rows.shape)]
        return pushforward(generator, rows, moves, steps=steps)[1][0].flatten(1).T

    draw = torch.Generator().manual_seed(seed)
    pixels = ddim(generator, rows[:1], steps=steps).numel()
    v = back(torch.randn(pixels, k + 4, generator=draw).to(rows))
    for _ in range(rounds):
        v = back(torch.linalg.qr(ahead(torch.linalg.qr(v).Q)).Q)
    basis = torch.linalg.qr(v).Q
    U, S, Vh = torch.linalg.svd(ahead(basis), full_matrices=False)
    return U[:, :k], S[:k], (basis @ Vh.T)[:, :k]
