"""Converted checkpoints answer as the published architecture does, written here in plain torch."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from lib.diffusion import adm, models, rehearsal, sampling

SMALL = {"channels": 32, "mult": (1, 2), "layers": 1, "attends": (False, True), "out": 3}


class Published:
    """Names, shapes and forward pass of guided diffusion's U-Net, from the papers.

    Residual block: norm, SiLU, (resize), conv, time (added, or scale and shift), norm, SiLU, conv,
    on top of a (resized, projected) copy of its input. Attention: softmax(q k / sqrt(d)) v.
    """

    def __init__(self, *, channels, mult, layers, attends, out, **switches):
        self.layers, self.attends, self.out = layers, attends, out
        self.first, self.widths = channels, [channels * m for m in mult]
        self.shifts = switches.get("shifts", False)
        self.residual_resize = switches.get("residual_resize", False)
        self.heads, self.per_head = switches.get("heads"), switches.get("per_head")
        self.new_order, self.classes = switches.get("new_order", False), switches.get("classes")
        self.into = switches.get("into", 3)
        self.state, self.draw = {}, torch.Generator().manual_seed(0)
        self.skips, self.plan = [], {"input": [], "middle": [], "output": []}
        self.describe()

    def tensor(self, name, *shape):
        self.state[name] = shape

    def affine(self, name, out, *shape):
        self.tensor(f"{name}.weight", out, *shape)
        self.tensor(f"{name}.bias", out)

    def residual(self, name, before, after, resize=None):
        self.affine(f"{name}.in_layers.0", before)
        self.affine(f"{name}.in_layers.2", after, before, 3, 3)
        self.affine(f"{name}.emb_layers.1", 2 * after if self.shifts else after, 4 * self.first)
        self.affine(f"{name}.out_layers.0", after)
        self.affine(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            self.affine(f"{name}.skip_connection", after, before, 1, 1)
        return ("residual", name, resize)

    def attention(self, name, width):
        self.affine(f"{name}.norm", width)
        self.affine(f"{name}.qkv", 3 * width, width, 1)
        self.affine(f"{name}.proj_out", width, width, 1)
        return ("attention", name)

    def resize(self, name, width, way):
        if self.residual_resize:
            return self.residual(name, width, width, way)
        self.affine(f"{name}.{'op' if way == 'down' else 'conv'}", width, width, 3, 3)
        return (way, name)

    def describe(self):
        self.affine("time_embed.0", 4 * self.first, self.first)
        self.affine("time_embed.2", 4 * self.first, 4 * self.first)
        if self.classes:
            self.tensor("label_emb.weight", self.classes, 4 * self.first)
        self.affine("input_blocks.0.0", self.first, self.into, 3, 3)
        width, skips, i = self.first, [self.first], 1
        for level, after in enumerate(self.widths):
            for _ in range(self.layers):
                block = [self.residual(f"input_blocks.{i}.0", width, after)]
                width, i = after, i + 1
                if self.attends[level]:
                    block.append(self.attention(f"input_blocks.{i - 1}.1", width))
                self.plan["input"].append(block)
                skips.append(width)
            if level < len(self.widths) - 1:
                self.plan["input"].append([self.resize(f"input_blocks.{i}.0", width, "down")])
                skips.append(width)
                i += 1
        self.plan["middle"] = [
            self.residual("middle_block.0", width, width),
            self.attention("middle_block.1", width),
            self.residual("middle_block.2", width, width),
        ]
        i = 0
        for level in range(len(self.widths) - 1, -1, -1):
            for j in range(self.layers + 1):
                name = f"output_blocks.{i}"
                block = [self.residual(f"{name}.0", width + skips.pop(), self.widths[level])]
                width, i = self.widths[level], i + 1
                if self.attends[level]:
                    block.append(self.attention(f"{name}.1", width))
                if level and j == self.layers:
                    block.append(self.resize(f"{name}.{len(block)}", width, "up"))
                self.plan["output"].append(block)
        self.affine("out.0", width)
        self.affine("out.2", self.out, width, 3, 3)

    def filled(self):
        """A random state dict with these names and shapes, as a training would save it."""
        state = {}
        for name, shape in self.state.items():
            size = math.prod(shape[1:]) if len(shape) > 1 else 4
            state[name] = torch.randn(shape, generator=self.draw) / math.sqrt(size)
        return state

    def __call__(self, state, x, t, labels=None):
        s = {name: value.double() for name, value in state.items()}
        half = self.first // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
        angles = t.double()[:, None] * rates
        time = torch.cat([angles.cos(), angles.sin()], 1)
        time = F.linear(time, s["time_embed.0.weight"], s["time_embed.0.bias"])
        time = F.linear(F.silu(time), s["time_embed.2.weight"], s["time_embed.2.bias"])
        if labels is not None:
            time = time + s["label_emb.weight"][labels]
        x = F.conv2d(x, s["input_blocks.0.0.weight"], s["input_blocks.0.0.bias"], padding=1)
        kept = [x]
        for block in self.plan["input"]:
            x = self.run(s, block, x, time)
            kept.append(x)
        x = self.run(s, self.plan["middle"], x, time)
        for block in self.plan["output"]:
            x = self.run(s, block, torch.cat([x, kept.pop()], 1), time)
        x = F.silu(F.group_norm(x, 32, s["out.0.weight"], s["out.0.bias"]))
        return F.conv2d(x, s["out.2.weight"], s["out.2.bias"], padding=1)

    def run(self, s, block, x, time):
        for kind, name, *resize in block:
            if kind == "residual":
                x = self.residual_pass(s, name, x, time, *resize)
            elif kind == "attention":
                x = self.attention_pass(s, name, x)
            elif kind == "down":
                x = F.conv2d(x, s[f"{name}.op.weight"], s[f"{name}.op.bias"], 2, 1)
            else:
                x = F.interpolate(x, scale_factor=2.0)
                x = F.conv2d(x, s[f"{name}.conv.weight"], s[f"{name}.conv.bias"], padding=1)
        return x

    def residual_pass(self, s, name, x, time, way):
        def norm(h, part):
            return F.group_norm(h, 32, s[f"{name}.{part}.weight"], s[f"{name}.{part}.bias"])

        def conv(h, part, padding=1):
            return F.conv2d(
                h, s[f"{name}.{part}.weight"], s[f"{name}.{part}.bias"], padding=padding
            )

        h = F.silu(norm(x, "in_layers.0"))
        if way is not None:
            size = {
                "down": lambda v: F.avg_pool2d(v, 2),
                "up": lambda v: v.repeat_interleave(2, 2).repeat_interleave(2, 3),
            }[way]
            h, x = size(h), size(x)
        h = conv(h, "in_layers.2")
        e = F.linear(F.silu(time), s[f"{name}.emb_layers.1.weight"], s[f"{name}.emb_layers.1.bias"])
        e = e[:, :, None, None]
        if self.shifts:
            scale, shift = e.chunk(2, 1)
            h = norm(h, "out_layers.0") * (1 + scale) + shift
        else:
            h = norm(h + e, "out_layers.0")
        h = conv(F.silu(h), "out_layers.3")
        return h + (conv(x, "skip_connection", 0) if f"{name}.skip_connection.bias" in s else x)

    def attention_pass(self, s, name, x):
        n, width, *size = x.shape
        flat = x.reshape(n, width, -1)
        h = F.group_norm(flat, 32, s[f"{name}.norm.weight"], s[f"{name}.norm.bias"])
        qkv = F.conv1d(h, s[f"{name}.qkv.weight"], s[f"{name}.qkv.bias"])
        heads = self.heads or width // self.per_head
        if self.new_order:
            q, k, v = qkv.view(n, 3, heads, width // heads, -1).unbind(1)
        else:
            q, k, v = qkv.view(n, heads, 3, width // heads, -1).unbind(2)
        weights = torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(width // heads)
        h = torch.einsum("nhts,nhcs->nhct", weights.softmax(-1), v).reshape(n, width, -1)
        h = F.conv1d(h, s[f"{name}.proj_out.weight"], s[f"{name}.proj_out.bias"])
        return (flat + h).view(n, width, *size)


SWITCHES = {
    "adm": {"shifts": True, "residual_resize": True, "per_head": 32, "out": 6},
    "improved": {"heads": 1},
    "four heads": {"heads": 4, "mult": (1, 1), "shifts": True},
    "new order": {"per_head": 16, "new_order": True, "residual_resize": True},
    "deep": {"mult": (1, 1, 2), "layers": 2, "attends": (False, True, True), "per_head": 16},
    "one level": {"mult": (1,), "attends": (True,), "heads": 2},
    "classes": {"per_head": 32, "classes": 5, "shifts": True, "residual_resize": True},
}


def converted(tmp_path, network, state, suffix=".pt", **flags):
    file = tmp_path / f"published{suffix}"
    torch.save(state, file)
    names = {"heads": network.heads, "head_channels": network.per_head}
    own = {"image_size": 8, "new_attention_order": network.new_order, **names, **flags}
    return adm.convert(file, tmp_path / "folder", **own)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_converted_network_answers_as_the_published_one(name, tmp_path):
    network = Published(**SMALL | SWITCHES[name])
    state = network.filled()
    folder = converted(tmp_path, network, state)
    generator = models.load(folder, device="cpu", dtype=torch.float64)
    x, t = generator.noise(2, 0), torch.tensor([3, 800])
    labels = [4, 0] if network.classes else None
    theirs = network(state, x, t, labels)
    assert 0.1 < float(theirs.std()) < 100
    ours = generator.epsilon(x, t, class_labels=labels)
    torch.testing.assert_close(ours, theirs[:, :3], atol=1e-6, rtol=1e-6)
    record = json.loads((folder / "provenance.json").read_text())
    assert record["flags"]["image_size"] == 8 and len(record["source_sha256"]["published.pt"]) == 64
    own = {} if labels is None else {"class_labels": labels}
    assert bool(sampling.ddim(generator, x, steps=2, **own).isfinite().all())


PAPER = {  # published flags, and how many numbers the published files hold
    "adm-lsun-256": {
        "channels": 256,
        "mult": (1, 1, 2, 2, 4, 4),
        "layers": 2,
        "attends": (False, False, False, True, True, True),
        "out": 6,
        "shifts": True,
        "residual_resize": True,
        "per_head": 64,
    },
    "learned-sigma-256": {
        "channels": 128,
        "mult": (1, 1, 2, 2, 4, 4),
        "layers": 1,
        "attends": (False,) * 4 + (True, False),
        "out": 6,
        "shifts": True,
        "residual_resize": True,
        "per_head": 64,
    },
}


@pytest.mark.parametrize("kind", PAPER)
def test_rehearsed_networks_have_every_tensor_of_the_published_checkpoints(kind):
    network = Published(**PAPER[kind])
    state = {name: torch.empty(shape, device="meta") for name, shape in network.state.items()}
    plan = adm.layout(state)
    names = adm.renamed(state, plan, 64)
    with torch.device("meta"):
        unet = rehearsal.networks(kind)["unet"]()
    assert {k: tuple(v.shape) for k, v in names.items()} == {
        k: tuple(v.shape) for k, v in unet.state_dict().items()
    }


def test_improved_diffusions_4000_levels_keep_those_with_whole_times(tmp_path):
    network = Published(**SMALL | SWITCHES["improved"])
    options = {"noise_schedule": "cosine", "diffusion_steps": 4000}
    folder = converted(tmp_path, network, network.filled(), **options)
    found = models.load(folder, device="cpu").alphas
    f = torch.cos((torch.arange(4001).double() / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    expected = torch.cumprod(1 - betas, 0)[::4]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-9)
    assert len(found) == 1000


def without(state, start):
    return {name: value for name, value in state.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("switches", "spoil", "flags", "message"),
    [
        ({"heads": 1}, None, {"head_channels": 32}, "give one of the two"),
        ({"per_head": 24}, None, {}, "heads of 24 channels do not divide"),
        (
            {"heads": 4, "mult": (1, 2), "attends": (True, True)},
            None,
            {},
            r"heads = 4 at the widths \[32, 64\].*128x128_diffusion.pt",
        ),
        ({"heads": 1, "mult": (2, 2)}, None, {}, "first width 32 .* 64.*512x512_diffusion.pt"),
        ({"heads": 1}, "input_blocks.2.0.op", {}, "conv_resample = False"),
        ({"heads": 1}, "time_embed.0", {}, "no denoiser of guided or improved diffusion"),
        ({"heads": 1}, "output_blocks", {}, "a classifier of theirs is none"),
        ({"heads": 1, "into": 6, "out": 6}, None, {}, "in_channels = 6, .* an upsampler sees"),
        ({"heads": 1}, "output_blocks.1.1.norm", {}, "group_norm"),
        ({"heads": 1}, "extra", {}, "extra.0.weight has no place"),
        ({"heads": 1}, None, {"noise_schedule": "sigmoid"}, "choose 'linear' or 'cosine'"),
        ({"heads": 1}, None, {"diffusion_steps": 250}, "1000 or a multiple"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(switches, spoil, flags, message, tmp_path):
    network = Published(**SMALL | switches)
    state = network.filled()
    if spoil == "extra":
        state["extra.0.weight"] = torch.zeros(1)
    elif spoil:
        state = without(state, spoil)
    with pytest.raises(ValueError, match=message):
        converted(tmp_path, network, state, **flags)
    assert not (tmp_path / "folder").exists()


class Payload:
    def __reduce__(self):
        return (print, ("code has run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    network = Published(**SMALL | SWITCHES["improved"])
    with pytest.raises(ValueError, match="more than named tensors"):
        converted(tmp_path, network, {"x": Payload()})
    with pytest.raises(ValueError, match="more than named tensors"):
        converted(tmp_path, network, {"state_dict": network.filled()})
    assert "code has run" not in capsys.readouterr().out


def test_the_command_converts_and_says_where_to(tmp_path, capsys):
    network = Published(**SMALL | SWITCHES["improved"])
    torch.save(network.filled(), tmp_path / "a.pt")
    arguments = [str(tmp_path / "a.pt"), str(tmp_path / "b"), "--image-size", "8"]
    with pytest.raises(SystemExit):
        adm.main(arguments)
    assert "give one of the two" in capsys.readouterr().err
    adm.main([*arguments, "--heads", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "b")
