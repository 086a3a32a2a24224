"""Attention and group norm of a diffusers network, written with operations that have a jvp."""

from collections.abc import Callable

from torch import Tensor, nn

CODEBOOK = (
    "a VQModel draws images that are piecewise constant in its latents, so that their derivative "
    "is zero or does not exist; take a pixel model or one with an AutoencoderKL"
)


class PlainAttention:
    """Attention processor that writes softmax(q k^T / sqrt(d)) v out in the input's own type.

    The fused kernel has no forward-mode rule; the library's unfused one drops to float32 inside.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Same contract as the library's processors, without masks."""

        def weigh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (attn.scale * q @ k.transpose(1, 2)).softmax(-1) @ v

        return attend(attn, hidden_states, encoder_hidden_states, weigh)


def attend(attn: nn.Module, x: Tensor, context: Tensor | None, weigh: Callable) -> Tensor:
    """What a diffusers attention does around weigh(q, k, v), the weighted sum of its values.

    x: (n, channels, height, width) or (n, tokens, channels); context: (n, tokens, width), else x.
    """
    shape, residual = x.shape, x
    x = x.flatten(2).transpose(1, 2) if len(shape) == 4 else x
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    context = x if context is None else context
    parts = attn.to_q(x), attn.to_k(context), attn.to_v(context)
    x = attn.to_out[0](attn.batch_to_head_dim(weigh(*map(attn.head_to_batch_dim, parts))))
    if len(shape) == 4:
        x = x.transpose(1, 2).reshape(shape)
    return (x + residual if attn.residual_connection else x) / attn.rescale_output_factor


class PlainGroupNorm(nn.GroupNorm):
    """Group normalisation written with mean and variance, which have forward-mode rules."""

    def forward(self, input: Tensor) -> Tensor:
        """(x - mean) / sqrt(var + eps) within each group, then scale and shift per channel."""
        x = input.reshape(input.shape[0], self.num_groups, -1)
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        per_channel = (1, -1) + (1,) * (input.ndim - 2)
        x = x.reshape(input.shape)
        return x * self.weight.view(per_channel) + self.bias.view(per_channel)


def make_differentiable(module: nn.Module) -> nn.Module:
    """Swap `PlainAttention` and `PlainGroupNorm` into a diffusers network, in place.

    Outputs agree with the fused kernels to rounding; torch.func.jvp and vmap then work. Raises
    ValueError for a network with a codebook, which the library differentiates as if it had none.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.vae import VectorQuantizer

    for part in module.modules():
        if isinstance(part, VectorQuantizer):
            raise ValueError(f"differentiable=True: {CODEBOOK}")
        if isinstance(part, Attention):
            part.set_processor(PlainAttention())
        elif type(part) is nn.GroupNorm:
            part.__class__ = PlainGroupNorm
    return module
