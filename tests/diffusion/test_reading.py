"""Folders read as the library reads them, or refused with the part or the file by name."""

import json
import shutil

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks import small
from lib import hspace, slices
from lib.diffusion import models, sampling, tangents

TIMES = 10  # of a schedule that the library's grid and ours walk alike
SCHEDULE = {"num_train_timesteps": TIMES, "clip_sample": False, "set_alpha_to_one": True}
AUTOENCODER = small.AUTOENCODER_TINY | {"latent_channels": 3}
UNET = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def without(file, *names):
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in names}))


def copied(tiny, kind, target):
    return shutil.copytree(tiny[kind], target)


def latent_folder(folder, kind, **options):
    """An unconditional latent model as the library saves it, and the library's pipeline."""
    torch.manual_seed(0)
    autoencoder = getattr(diffusers, kind)(**AUTOENCODER, **options)
    pipeline = diffusers.LDMPipeline(
        vqvae=autoencoder,
        unet=diffusers.UNet2DModel(**UNET),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return folder, pipeline


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VQModel", {"num_vq_embeddings": 16, "scaling_factor": 1.0}),
        ("VQModel", {"num_vq_embeddings": 16, "scaling_factor": 0.4}),
        ("AutoencoderKL", {"scaling_factor": 0.4}),
        ("AutoencoderKL", {}),
    ],
)
def test_unconditional_latent_models_draw_what_the_librarys_pipeline_draws(kind, options, tmp_path):
    folder, pipeline = latent_folder(tmp_path / "ldm", kind, **options)
    generator = models.load(folder, device="cpu")
    assert generator.latent_shape == (3, 8, 8) and generator.image_shape == (3, 16, 16)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = sampling.ddim(generator, x, steps=TIMES)
    theirs = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=TIMES,
        output_type="np",
    ).images
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_latent_models_invert_as_far_as_their_autoencoder_goes(tmp_path):
    folder, _ = latent_folder(tmp_path / "ldm", "VQModel", num_vq_embeddings=16, scaling_factor=0.4)
    generator = models.load(folder, device="cpu", dtype=torch.float64)
    image = torch.linspace(-1, 1, 3 * 16 * 16, dtype=torch.float64).view(1, 3, 16, 16)
    clean = generator.encode(image)
    x = sampling.invert(generator, image, steps=TIMES, refine=60)
    back = sampling.ddim(generator, x, steps=TIMES, decode=False)
    torch.testing.assert_close(back, clean, atol=1e-8, rtol=0)


def test_a_codebook_older_than_its_scale_is_not_scaled(tmp_path):
    folder, _ = latent_folder(tmp_path / "ldm", "VQModel", num_vq_embeddings=16, scaling_factor=1.0)
    x = models.load(folder, device="cpu").noise(1, 0)
    expected = models.load(folder, device="cpu").decode(x)
    without(folder / "vqvae" / "config.json", "scaling_factor")
    with pytest.warns(UserWarning, match="vqvae: no scaling_factor, latents are not scaled"):
        generator = models.load(folder, device="cpu")
    assert torch.equal(generator.decode(x), expected)


def test_the_network_of_a_latent_model_alone_is_refused(tmp_path):
    folder, _ = latent_folder(tmp_path / "ldm", "AutoencoderKL")
    with pytest.raises(ValueError, match="makes latents for vqvae beside it"):
        models.load(folder / "unet")


def test_parts_that_the_index_names_are_demanded_and_others_left_alone(tmp_path, tiny):
    folder, _ = latent_folder(tmp_path / "ldm", "AutoencoderKL")
    shutil.copytree(folder / "vqvae", folder / "vae")
    expected = models.load(folder, device="cpu").weight_hash
    shutil.rmtree(folder / "vae")
    assert models.load(folder, device="cpu").weight_hash == expected
    shutil.rmtree(folder / "vqvae")
    with pytest.raises(ValueError, match="has no vqvae"):
        models.load(folder)


@pytest.mark.parametrize("part", ["bert", "text_encoder_2", "transformer", "controlnet"])
def test_parts_that_are_unknown_are_refused_by_name(tiny, tmp_path, part):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    change(folder / "model_index.json", **{part: ["diffusers", "Something"]})
    with pytest.raises(ValueError, match=f"names the part {part}"):
        models.load(folder)


def test_other_autoencoders_and_widths_are_refused_by_name(tiny, tmp_path):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    shutil.rmtree(folder / "vae")
    options = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    diffusers.AutoencoderTiny(**options, **layers).save_pretrained(folder / "vae")
    with pytest.raises(ValueError, match="vae holds a AutoencoderTiny; .* AutoencoderKL or VQ"):
        models.load(folder)
    shutil.rmtree(folder / "vae")
    diffusers.AutoencoderKL(**AUTOENCODER).save_pretrained(folder / "vae")
    with pytest.raises(ValueError, match="vae takes latents of 3 channels, the U-Net makes 4"):
        models.load(folder)
    config = transformers.CLIPTextConfig(**small.TEXT_TINY | {"hidden_size": 24})
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(ValueError, match=r"gives 24 numbers a token, the U-Net takes \{16\}"):
        models.load(folder)
    change(folder / "text_encoder" / "config.json", hidden_size=16)
    with pytest.raises(ValueError, match="text_encoder: weights of another shape"):
        models.load(folder)
    change(folder / "text_encoder" / "config.json", model_type="t5")
    with pytest.raises(ValueError, match="text_encoder holds a t5"):
        models.load(folder)


@pytest.mark.parametrize(("version", "size"), [("0.6.0", 64), ("0.9.0", 8), ("0.42.1", 8)])
def test_text_models_of_old_versions_are_as_large_as_the_library_says(
    tiny, tmp_path, version, size
):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    change(folder / "unet" / "config.json", _diffusers_version=version)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.unet.config.sample_size == size
    assert models.load(folder, device="cpu").latent_shape == (4, size, size)


def test_weights_that_are_there_in_half_precision_only_are_read(tiny, tmp_path):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    for file in sorted(folder.rglob("*.safetensors")):
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file, metadata={"format": "pt"})
    plain = models.load(folder, device="cpu").weight_hash
    for file in sorted(folder.rglob("*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    generator = models.load(folder, device="cpu")
    assert generator.weight_hash == plain
    assert {p.dtype for p in generator.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_pieces_are_read_and_a_missing_piece_is_named(tiny, tmp_path, variant):
    folder = copied(tiny, "celebahq-256", tmp_path / "model")
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="10KB", variant=variant)
    pieces = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    whole = models.load(tiny["celebahq-256"], device="cpu").weight_hash
    assert models.load(folder, device="cpu").weight_hash == whole
    pieces[1].unlink()
    with pytest.raises(ValueError, match=f"lacks {pieces[1].name}, one of the {len(pieces)}"):
        models.load(folder)


def test_a_tokenizer_without_a_limit_takes_that_of_the_text_encoder(tiny, tmp_path):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    without(folder / "tokenizer" / "tokenizer_config.json", "model_max_length")
    generator, whole = models.load(folder, device="cpu"), models.load(tiny["sd-1.5"], device="cpu")
    assert generator.tokenizer.model_max_length == 77
    assert torch.equal(generator.embed("a face", 1), whole.embed("a face", 1))
    with pytest.raises(ValueError, match="at most 75 fit"):
        generator.embed("a face " * 60, 1)


def test_a_zero_terminal_snr_is_sampled_with_a_velocity_head(tiny, tmp_path):
    folder = copied(tiny, "celebahq-256", tmp_path / "zero")
    file = folder / "scheduler" / "scheduler_config.json"
    change(file, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match=r"scheduler_config.json: zero terminal SNR.*v_prediction"):
        models.load(folder)
    change(file, prediction_type="v_prediction")
    generator = models.load(folder, device="cpu", dtype=torch.float64)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    assert float(scheduler.alphas_cumprod[-1]) == 0
    x = generator.noise(2, 0)
    # the clean image in the library's words, which stay finite at alpha = 0
    v = generator.unet(x, 999, return_dict=False)[0]
    theirs = -v
    ours = sampling.predicted(x, generator.epsilon(x, 999), generator.alpha(999))
    torch.testing.assert_close(ours, theirs, atol=3e-3, rtol=0)
    single = models.load(folder, device="cpu")
    image = sampling.ddim(single, single.noise(2, 0), steps=5)
    double = sampling.ddim(generator, generator.noise(2, 0), steps=5)
    torch.testing.assert_close(image.double(), double, atol=5e-3, rtol=5e-3)


def test_alphas_that_reach_zero_say_what_that_means(gaussian):
    alphas = gaussian.alphas.clone()
    alphas[-1] = 0
    with pytest.raises(ValueError, match=r"alphas reach 0 .*zero SNR"):
        models.Generator(gaussian.unet, alphas, (1, 4, 4))


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "model_index.json",
    ],
)
@pytest.mark.parametrize("damage", ["conflict", "mark"])
def test_a_broken_config_is_named_whichever_it_is(tiny, tmp_path, file, damage):
    folder = copied(tiny, "sd-1.5", tmp_path / "sd")
    text = (folder / file).read_bytes()
    marks = b"<<<<<<< HEAD\n" + text + b"=======\n" + text + b">>>>>>> other\n"
    (folder / file).write_bytes(marks if damage == "conflict" else b"\xef\xbb\xbf" + text)
    with pytest.raises(ValueError, match=f"{file} is no JSON"):
        models.load(folder)


def test_unknown_betas_are_refused_by_name(tiny, tmp_path):
    folder = copied(tiny, "celebahq-256", tmp_path / "model")
    change(folder / "scheduler" / "scheduler_config.json", beta_schedule="sawtooth")
    with pytest.raises(ValueError, match="sawtooth"):
        models.load(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A pixel model of four classes, random weights."""
    root = tmp_path_factory.mktemp("classes")
    torch.manual_seed(0)
    diffusers.UNet2DModel(**UNET, num_class_embeds=4).save_pretrained(root / "unet")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(root / "scheduler")
    return root


def test_each_row_has_its_class_in_every_call(classes):
    generator = models.load(classes, device="cpu", dtype=torch.float64)
    assert generator.classes == 4
    x, labels = generator.noise(3, 0), [3, 0, 1]
    found = generator.epsilon(x, 300, class_labels=labels)
    stock = generator.unet(x, 300, class_labels=torch.tensor(labels)).sample
    torch.testing.assert_close(found, stock)
    run = {"steps": 3, "batch": 2}
    images = sampling.ddim(generator, x, class_labels=labels, **run)
    back = sampling.invert(generator, images.clamp(-1, 1), class_labels=torch.tensor(labels), **run)
    delta = hspace.constant(0.1 * torch.ones(hspace.h_shape(generator)))
    edited = hspace.asyrp(generator, x, delta, t_edit=500, class_labels=labels, **run)
    torch.testing.assert_close(edited.reconstruction, images)
    for i, label in enumerate(labels):
        own = {"class_labels": label, "steps": 3}
        row = slice(i, i + 1)
        torch.testing.assert_close(sampling.ddim(generator, x[row], **own), images[row])
        alone = sampling.invert(generator, images[row].clamp(-1, 1), **own)
        torch.testing.assert_close(alone, back[row])
        alone = hspace.asyrp(generator, x[row], delta, t_edit=500, **own)
        torch.testing.assert_close(alone.edited, edited.edited[row])
    other = generator.epsilon(x, 300, class_labels=2)
    assert bool(((other - found).abs().flatten(1).amax(1) > 1e-6).all())


def test_slices_and_their_derivatives_take_a_class(classes):
    generator = models.load(classes, device="cpu", dtype=torch.float64)
    twin = models.load(classes, device="cpu", dtype=torch.float64, differentiable=True)
    plane = slices.Slice(generator.noise(3, 1))
    t, own = slices.grid(2, low=(0.2, 0.3)), {"steps": 2, "class_labels": 1}
    torch.testing.assert_close(
        slices.render(generator, plane, t, **own),
        sampling.ddim(generator, plane.latents(t, dtype=torch.float64), **own),
    )
    jacobians = slices.jacobian(generator, plane, t, **own)

    def draw(s):
        return slices.render(twin, plane, s, differentiable=True, **own).flatten(1)

    for i in range(2):
        move = torch.eye(2, dtype=torch.float64)[i].expand(len(t), 2)
        expected = torch.func.jvp(draw, (t.double(),), (move,))[1]
        torch.testing.assert_close(jacobians[..., i], expected, atol=1e-9, rtol=1e-8)
    with pytest.raises(ValueError, match="class_labels = None"):
        tangents.pushforward(generator, generator.noise(1, 0), [], steps=2)


@pytest.mark.parametrize("labels", [None, 4, -1, 0.5, True, [0, 1, 2], [[0, 1]], "cat"])
def test_labels_that_are_missing_or_wrong_are_refused(classes, labels):
    generator = models.load(classes, device="cpu")
    with pytest.raises(ValueError, match="class_labels"):
        generator.epsilon(generator.noise(2, 0), 1, class_labels=labels)
    with pytest.raises(ValueError, match="class_labels"):
        sampling.ddim(generator, generator.noise(2, 0), steps=2, class_labels=labels)


def test_models_without_classes_refuse_labels_and_those_with_them_refuse_text(tiny, classes):
    for kind in ("sd-1.5", "celebahq-256"):
        generator = models.load(tiny[kind], device="cpu")
        with pytest.raises(ValueError, match="has no classes"):
            sampling.ddim(generator, generator.noise(1, 0), steps=2, class_labels=0)
    generator = models.load(classes, device="cpu")
    with pytest.raises(ValueError, match="takes no text"):
        generator.epsilon(generator.noise(1, 0), 1, class_labels=0, guidance=2.0)
