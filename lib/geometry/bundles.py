"""The network of the trained posterior: a bundle of samples to logits over a grid of parameters."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

from lib.geometry.cells import cells


class BundleNetwork(nn.Module):
    """Bundles (n, K · channels, h, w) to logits Σ_k a_k(f̄) b_k(t) over the cells, (n, g, g).

    f̄ is the mean, over sites and members, of the sample and of each convolution of it; b is read
    from the coordinates of the cells. Of an exponential family this sum is log p(t|x), with a
    linear in f̄ and (θ, K log Z) among the b, up to what belongs to x alone.

    Three parts of the usual U-Net are left out, because each costs accuracy here. Members as
    channels make it learn one statistic K times over. Batch statistics of samples from all over the
    box stir each of them, and a sample normalised by itself has lost its magnetisation. An
    expanding half speaks of sites, and a map is indexed by parameters. K log Z spans hundreds of
    nats and is wanted to a tenth of one, which takes the depth of b.

    Where something lies it sees by the edge of the lattice alone, and on a torus not at all. If the
    place is what tells parameters apart, as in an image, take the means over places² equal parts.

    channels: of one sample. width: of the first convolution; later ones are twice as wide.
    periodic: the lattice is a torus, whose bonds across the edge count as well. places: parts per
    axis that are averaged apart.
    Source: Lobashev et al. 2025, section 3, has a U²-Net of 44 M parameters in this place.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        *,
        width: int = 16,
        depth: int = 2,
        periodic: bool = False,
        places: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.config = dict(channels=channels, grid=grid, width=width, depth=depth)
        self.config |= dict(periodic=periodic, places=places, seed=seed)
        sizes = [channels, width, *[2 * width] * (depth - 1)]
        edge = "circular" if periodic else "zeros"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(i, o, 3, padding=1, padding_mode=edge) for i, o in pairwise(sizes)
            )
            self.a = _mlp(sum(sizes) * places**2, 96, hidden=1)
            self.b = _mlp(2, 96, hidden=3)
        self.register_buffer("cells", 2 * cells(grid).float() - 1)

    def forward(self, bundles: Tensor) -> Tensor:
        """Logits of the maps."""
        members = bundles.unflatten(1, (-1, self.config["channels"]))
        x = members.flatten(0, 1)
        means = [self._averaged(x)]
        for convolution in self.convolutions:
            x = silu(convolution(x))
            means.append(self._averaged(x))
        f = torch.cat(means, 1).unflatten(0, members.shape[:2]).mean(1)
        grid = self.config["grid"]
        return (self.a(f) @ self.b(self.cells).T).view(-1, grid, grid)

    def _averaged(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool2d(x, self.config["places"]).flatten(1)


def _mlp(inputs: int, width: int, hidden: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, width))
