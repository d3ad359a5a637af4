"""Each component equals the public one: fp32, small widths, random weights, forward and gradients, within 1e-5."""

import pytest
import torch
from conftest import MICRO
from references import (
    BiasedAttention,
    OfficialAdapter,
    OfficialHGA,
    OfficialPRD,
    assert_parity,
    bias_widths,
    diffusers_unet,
    diffusers_vae,
    noise,
    randomise,
    relative_error,
)
from torch import Tensor, nn

from cfld.adapter import AdapterConfig, PoseAdapter
from cfld.convert.layouts import (
    ADAPTER_OFFICIAL,
    HGA_OFFICIAL,
    PRD_OFFICIAL,
    SWIN_TIMM,
    UNET_DIFFUSERS,
    VAE_DIFFUSERS,
    Rules,
    rename,
)
from cfld.convert.load import load_swin
from cfld.hga import HGAConfig, HybridGranularityAttention
from cfld.prd import PerceptionRefinedDecoder, PRDBlock, PRDConfig
from cfld.scheduler import SAMPLERS, Scheduler, SchedulerConfig
from cfld.swin import Swin, SwinConfig
from cfld.unet import UNet, UNetConfig
from cfld.vae import VAE, VAEConfig


def by(rules: Rules):
    """The translation of a state dict by a table of the shipping converter."""
    return lambda tensors: {rename(name, dict(rules)): tensor for name, tensor in tensors.items()}


CHANNELS, CONTEXT = (32, 64, 96, 96), 48
CONFIG = UNetConfig(channels=CHANNELS, context_width=CONTEXT, groups=8)
LATENTS, PROMPT = noise(2, 4, 16, 16), noise(2, 7, CONTEXT, seed=1)
TIMESTEPS = torch.tensor([3, 981])
POSES = [noise(2, c, 16 // 2**i, 16 // 2**i, seed=2 + i) for i, c in enumerate(CHANNELS[:3])]
BIASES = [noise(2, (4 * 2 ** (i // 3)) ** 2, width, seed=5 + i) for i, width in enumerate(bias_widths(CONFIG))]


@pytest.mark.parametrize("with_poses", [False, True], ids=["no pose", "pose"])
@pytest.mark.parametrize("with_biases", [False, True], ids=["no bias", "biases"])
def test_unet_equals_diffusers_unet(with_poses: bool, with_biases: bool) -> None:
    reference = diffusers_unet(CHANNELS, CONTEXT, groups=8)
    inputs = [LATENTS, PROMPT, *(POSES if with_poses else []), *(BIASES if with_biases else [])]

    def split(x: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor] | None, list[Tensor] | None]:
        return x[0], x[1], x[2:5] if with_poses else None, x[-9:] if with_biases else None

    def run_ours(x: list[Tensor]) -> list[Tensor]:
        latents, prompt, poses, biases = split(x)
        return [ours(latents, TIMESTEPS, prompt, poses, biases)]

    def run_theirs(x: list[Tensor]) -> list[Tensor]:
        latents, prompt, poses, biases = split(x)
        if biases:
            blocks = [a.transformer_blocks[0] for up in reference.up_blocks[1:] for a in up.attentions]
            for block, bias in zip(blocks, biases, strict=True):
                block.attn2.processor = BiasedAttention(bias)
        extra = {"down_intrablock_additional_residuals": list(poses)} if poses else {}
        return [reference(latents, TIMESTEPS, prompt, **extra).sample]

    ours = UNet(CONFIG)
    assert_parity(ours, reference, by(UNET_DIFFUSERS), run_ours, run_theirs, inputs)


def test_inputs_that_do_not_fit_the_unet_are_named_with_both_numbers() -> None:
    unet = UNet(MICRO.unet)
    latents, prompt, t = noise(1, 4, 8, 8), noise(1, 3, 16), torch.tensor([5])
    biases = [noise(1, 1, 32)] * 3 + [noise(1, 4, 32)] * 3 + [noise(1, 16, 16)] * 3
    for wrong in (biases[:3], [*biases, biases[0]], []):
        with pytest.raises(ValueError, match=f"^number of query biases must be 9, found {len(wrong)}$"):
            unet(latents, t, prompt, query_biases=wrong)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"^samples of the prompt must be 2, found {count}$"):
            unet(latents.repeat(2, 1, 1, 1), t, prompt.repeat(count, 1, 1))
    with pytest.raises(ValueError, match=r"^number of pose features must be 3, found 1$"):
        unet(latents, t, prompt, pose_features=[noise(1, 16, 8, 8)])
    with pytest.raises(ValueError, match=r"^channels of the latents must be 4, found 3$"):
        unet(noise(1, 3, 8, 8), t, prompt)
    with pytest.raises(ValueError, match=r"^width of the prompt must be 16, found 8$"):
        unet(latents, t, noise(1, 3, 8))
    for height, width in ((8, 12), (20, 8)):
        with pytest.raises(ValueError, match=f"must be multiples of 8, found {height} and {width}$"):
            unet(noise(1, 4, height, width), t, prompt)


def test_the_unets_checks_leave_one_graph_for_torch_compile() -> None:
    config = UNetConfig(channels=(8, 8), depth=1, num_heads=1, context_width=8, groups=4)
    unet = UNet(config).requires_grad_(False)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    inputs = noise(1, 4, 2, 2), torch.tensor([5]), noise(1, 3, 8)
    assert torch.equal(compiled(*inputs), unet(*inputs))


def test_a_pose_enters_the_second_skip_of_its_block_and_not_the_first() -> None:
    unet = UNet(CONFIG)
    _, plain = unet.down[0](noise(1, 32, 8, 8), noise(1, 128), noise(1, 7, CONTEXT), None)
    _, posed = unet.down[0](noise(1, 32, 8, 8), noise(1, 128), noise(1, 7, CONTEXT), torch.ones(1, 32, 8, 8))
    assert torch.equal(plain[0], posed[0])
    assert torch.allclose(plain[1] + 1, posed[1])


def test_vae_encoder_and_decoder_equal_diffusers() -> None:
    channels = (32, 64, 64)
    reference, ours = diffusers_vae(channels, groups=8), VAE(VAEConfig(channels=channels, groups=8))
    eps = noise(2, 4, 8, 8, seed=3)

    def run_ours(x: list[Tensor]) -> list[Tensor]:
        mean, logvar = ours.moments(x[0])
        return [ours.sample(mean, logvar, eps), ours.decode(x[1])]

    def run_theirs(x: list[Tensor]) -> list[Tensor]:
        posterior = reference.encode(x[0]).latent_dist
        return [0.18215 * (posterior.mean + posterior.std * eps), reference.decode(x[1] / 0.18215).sample]

    inputs = [noise(2, 3, 32, 32).clamp(-1, 1), 0.18215 * noise(2, 4, 8, 8, seed=1)]
    assert_parity(ours, reference, by(VAE_DIFFUSERS), run_ours, run_theirs, inputs)


def test_vae_encodes_the_mean_without_a_generator_and_a_sample_with_one() -> None:
    vae, images = randomise(VAE(VAEConfig(channels=(32, 32)))), noise(1, 3, 16, 16)
    mean, logvar = vae.moments(images)
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    assert torch.equal(vae.encode(images), 0.18215 * mean)
    assert torch.equal(vae.encode(images, torch.Generator().manual_seed(5)), vae.sample(mean, logvar, drawn))


def test_log_variances_are_clamped() -> None:
    vae = VAE(VAEConfig(channels=(32, 32)))
    with torch.no_grad():
        vae.encoder.to_moments.bias.fill_(1e4)
    assert vae.moments(noise(1, 3, 16, 16))[1].max() == 20


@pytest.mark.parametrize(("image_size", "window"), [(64, 4), (128, 16), (64, 16)], ids=["4", "16", "all clamped"])
def test_the_four_maps_of_swin_equal_timm(image_size: int, window: int) -> None:
    from timm.models.swin_transformer import SwinTransformer

    shape = {"depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)}
    reference = SwinTransformer(
        img_size=image_size, window_size=window, embed_dim=16, **shape, drop_path_rate=0, num_classes=0
    )
    reference.norm = nn.Identity()
    config = SwinConfig(image_size=image_size, window=window, width=16, **shape)
    ours = Swin(config)
    assert [block.shift > 0 for block in ours.stages[0]] == [False, window < image_size // 4]

    def run_theirs(x: list[Tensor]) -> list[Tensor]:
        maps, h = [], reference.patch_embed(x[0])
        for layer in reference.layers:
            h = layer(h)
            maps.append(h.permute(0, 3, 1, 2))
        return maps

    assert_parity(
        ours, reference, by(SWIN_TIMM), lambda x: ours(x[0]), run_theirs, [noise(2, 3, image_size, image_size)]
    )


def test_the_maps_of_swin_equal_transformers_through_its_file(tmp_path) -> None:
    from transformers import SwinConfig as TheirConfig
    from transformers import SwinForImageClassification

    shape = {"depths": (2, 2, 2, 2), "num_heads": (2, 4, 4, 8)}
    reference = SwinForImageClassification(
        TheirConfig(image_size=128, patch_size=4, embed_dim=16, window_size=4, drop_path_rate=0.0, **shape)
    )
    randomise(reference).save_pretrained(tmp_path)
    ours = load_swin(tmp_path / "model.safetensors", SwinConfig(image_size=128, window=4, width=16, **shape))
    images = noise(2, 3, 128, 128)
    h, maps = reference.swin.embeddings(images)[0], ours(images)
    for i, layer in enumerate(reference.swin.encoder.layers):
        size = 32 // 2**i
        for block in layer.blocks:
            h = block(h, (size, size))
            h = h[0] if isinstance(h, tuple) else h
        assert relative_error(maps[i], h.transpose(1, 2).reshape(2, -1, size, size)) <= 1e-5
        if layer.downsample is not None:
            h = layer.downsample(h, (size, size))


def test_stochastic_depth_drops_the_rows_that_its_draws_say_and_scales_the_others() -> None:
    config = SwinConfig(image_size=32, window=4, width=16, depths=(1, 1), num_heads=(2, 2), stochastic_depth=0.4)
    swin, images = randomise(Swin(config)), noise(2, 3, 32, 32)
    full, kept = swin(images), swin(images, torch.full((2, 4), 0.5))
    assert torch.equal(full[0], kept[0])  # the first block's rate is 0
    assert not torch.allclose(full[1], kept[1])
    dropped = swin(images, torch.tensor([[0.5] * 4, [0.5, 0.5, 0.3, 0.3]]))
    assert torch.equal(dropped[1][0], kept[1][0])
    merged = swin.merges[0](full[0].permute(0, 2, 3, 1))
    assert torch.allclose(dropped[1][1], merged[1].permute(2, 0, 1))  # both branches of the last block are gone
    last = swin.stages[1][0]
    half = swin(images, torch.tensor([[0.5, 0.5, 0.3, 0.5]] * 2))[1]  # its attention is gone, its MLP is 1 / 0.6 larger
    assert torch.allclose(half, (merged + last.mlp(last.norm2(merged)) / 0.6).permute(0, 3, 1, 2), atol=1e-5)


def test_one_prd_block_equals_its_reference() -> None:
    from references import OfficialPRDBlock

    ours, reference = PRDBlock(64, 2, 96), OfficialPRDBlock(64, 2, 96)
    inputs = [noise(2, 5, 64), noise(5, 64, seed=1), noise(2, 9, 96, seed=2)]
    assert_parity(ours, reference, by(PRD_OFFICIAL), lambda x: [ours(*x)], lambda x: [reference(*x)], inputs)


def test_the_prd_equals_its_reference() -> None:
    config = PRDConfig(num_queries=5, width=64, depth=3, num_heads=2, source_width=96, source_positions=9)
    ours, reference = PerceptionRefinedDecoder(config), OfficialPRD(5, 64, 3, 2, 96, 9)
    run = lambda module: lambda x: [module(x[0])]  # noqa: E731
    assert_parity(ours, reference, by(PRD_OFFICIAL), run(ours), run(reference), [noise(2, 96, 3, 3)])


@pytest.mark.parametrize("levels", [1, 3], ids=["one level", "whole"])
def test_the_hga_equals_its_reference(levels: int) -> None:
    sources, outputs = (64, 128, 192)[:levels], (48, 40, 32)[-levels:]
    ours = HybridGranularityAttention(HGAConfig(source_widths=sources, output_widths=outputs, depth=2))
    reference = OfficialHGA(sources, outputs, depth=2)
    features = [noise(2, c, 8 // 2**i, 8 // 2**i, seed=i) for i, c in enumerate(sources)]

    def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        offset = 3 - levels  # the table is of three levels
        renamed = by(HGA_OFFICIAL)(tensors)
        return {
            name.replace(f"levels.{i}", f"levels.{i - offset}"): x
            for name, x in renamed.items()
            for i in [int(name[7])]
        }

    assert_parity(ours, reference, translate, ours, reference, features)


def test_a_fresh_hga_gives_biases_of_exactly_zero_and_still_learns() -> None:
    hga = HybridGranularityAttention(HGAConfig(source_widths=(64,), output_widths=(48,), depth=1))
    biases = hga([noise(1, 64, 4, 4)])
    assert all((bias == 0).all() for bias in biases)
    sum(bias.sum() for bias in biases).backward()
    assert all(branch.conv_out.bias.grad.abs().sum() > 0 for branch in hga.levels[0])


def test_the_pose_adapter_equals_its_reference() -> None:
    ours, reference = PoseAdapter(AdapterConfig(pose_size=64, channels=(32, 64, 64))), OfficialAdapter((32, 64, 64))
    run = lambda module: lambda x: module(x[0])  # noqa: E731
    assert_parity(ours, reference, by(ADAPTER_OFFICIAL), run(ours), run(reference), [noise(2, 21, 64, 64)])


@pytest.fixture
def ddpm():
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1, timestep_spacing="leading", variance_type="fixed_small",
    )  # fmt: skip


def test_alpha_bars_and_added_noise_equal_diffusers(ddpm) -> None:
    ours, timesteps = Scheduler(), torch.arange(0, 1000, 37)
    latents, eps = noise(len(timesteps), 4, 8, 8), noise(len(timesteps), 4, 8, 8, seed=1)
    assert relative_error(ours.alpha_bars, ddpm.alphas_cumprod) <= 1e-6
    assert relative_error(ours.add_noise(latents, eps, timesteps), ddpm.add_noise(latents, eps, timesteps)) <= 1e-6


def test_a_predicted_velocity_is_read_as_diffusers_does(ddpm) -> None:
    ours, timesteps = Scheduler(), torch.arange(0, 1000, 37)
    latents, eps = noise(len(timesteps), 4, 8, 8), noise(len(timesteps), 4, 8, 8, seed=1)
    velocity, alpha_bar = ddpm.get_velocity(latents, eps, timesteps), ours.alpha_bar(timesteps)
    noisy = ours.add_noise(latents, eps, timesteps)
    assert relative_error(ours.noise_of_velocity(velocity, noisy, alpha_bar), eps) <= 1e-5

    reference = ddpm.from_config(ddpm.config, prediction_type="v_prediction")
    reference.set_timesteps(50)
    for t in (981, 501, 1):
        predicted, noisy = noise(1, 4, 8, 8, seed=t), noise(1, 4, 8, 8, seed=t + 1)
        noise_pred = ours.noise_of_velocity(predicted, noisy, ours.alpha_bar(torch.tensor([t])))
        theirs = reference.step(predicted, t, noisy).pred_original_sample
        assert relative_error(ours.clean_latents(noisy, noise_pred, t), theirs) <= 1e-5


def test_a_schedule_that_ends_in_noise_alone_equals_diffusers(ddpm, monkeypatch) -> None:
    """Zero terminal SNR: the table, what the last timestep holds, and a whole trajectory of predicted velocities."""
    reference = ddpm.from_config(ddpm.config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours = Scheduler(SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True))
    assert relative_error(ours.alpha_bars, reference.alphas_cumprod) <= 1e-6
    assert Scheduler().alpha_bars[-1].sqrt() > 0.06 and 0 < ours.alpha_bars[-1].sqrt() < 3e-4
    reference.set_timesteps(50)
    timesteps, latents = ours.sampling_timesteps(50), noise(2, 4, 8, 8)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        velocity, injected = noise(2, 4, 8, 8, seed=2 * t), noise(2, 4, 8, 8, seed=2 * t + 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=injected, **k: z)
        theirs = reference.step(velocity, t, latents).prev_sample
        noise_pred = ours.noise_of_velocity(velocity, latents, ours.alpha_bar(torch.tensor([t])))
        assert relative_error(ours.ddpm_step(latents, noise_pred, t, t_next, injected), theirs) <= 1e-5
        latents = theirs


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_the_picture_from_noise_alone(name: str) -> None:
    """A predictor that knows z_0: its velocity leads there also from the last timestep, where abar is all but 0."""
    ours, z_0 = Scheduler(SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True)), noise(1, 4, 8, 8)
    spacing, step = SAMPLERS[name]
    timesteps, latents, past = [999, *ours.sampling_timesteps(15, spacing)[1:]], noise(1, 4, 8, 8, seed=1), []
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        alpha_bar = ours.alpha_bar(torch.tensor([t]))
        velocity = (alpha_bar.sqrt() * latents - z_0) / (1 - alpha_bar).sqrt()
        noise_pred = ours.noise_of_velocity(velocity, latents, alpha_bar)
        x_0 = ours.clean_latents(latents, noise_pred, t)
        latents, past = step(ours, latents, noise_pred, t, t_next, None, past), [*past[-1:], (t, x_0)]
    assert relative_error(latents, z_0) <= (0.04 if name == "ddim" else 1e-3)  # ddim ends at timestep 0, with noise


@pytest.mark.parametrize("steps", [50, 7, 1])
def test_timesteps_and_every_ddpm_step_equal_diffusers(ddpm, steps: int, monkeypatch) -> None:
    ours, latents = Scheduler(), noise(2, 4, 8, 8)
    ddpm.set_timesteps(steps)
    timesteps = ours.sampling_timesteps(steps)
    assert timesteps == ddpm.timesteps.tolist()
    for i, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], -1], strict=True)):
        noise_pred, injected = noise(2, 4, 8, 8, seed=2 * i), noise(2, 4, 8, 8, seed=2 * i + 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=injected, **k: z)
        theirs = ddpm.step(noise_pred, t, latents).prev_sample
        assert relative_error(ours.ddpm_step(latents, noise_pred, t, t_next, injected), theirs) <= 1e-5
        latents = theirs


def test_the_last_ddpm_step_returns_the_predicted_clean_latents() -> None:
    scheduler, clean, eps = Scheduler(), noise(1, 4, 4, 4), noise(1, 4, 4, 4, seed=1)
    noisy = scheduler.add_noise(clean, eps, torch.tensor([1]))
    assert relative_error(scheduler.ddpm_step(noisy, eps, 1, -1, noise(1, 4, 4, 4, seed=2)), clean) <= 1e-5


# scheduler_config.json of Stable Diffusion 1.5. What it does not say, such as the spacing, is each class's default.
SD15 = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
REFERENCES = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}


def diffusers_sampler(name: str, steps: int):
    import diffusers

    reference = getattr(diffusers, REFERENCES[name]).from_config(SD15)
    reference.set_timesteps(steps)
    return reference


@pytest.mark.parametrize("steps", [1, 2, 5, 15, 20, 50])
@pytest.mark.parametrize("name", REFERENCES)
def test_whole_trajectories_equal_diffusers(name: str, steps: int) -> None:
    """With a made-up predictor of noise that depends on the latents and on the timestep."""
    scheduler, reference, (spacing, step) = Scheduler(), diffusers_sampler(name, steps), SAMPLERS[name]
    predict = lambda x, t: torch.tanh(0.8 * x + 0.3 * x.roll(1, dims=-1) + t / 1000)  # noqa: E731
    timesteps = scheduler.sampling_timesteps(steps, spacing)
    assert timesteps == reference.timesteps.tolist()
    ours = theirs = noise(2, 4, 8, 8)
    past = []
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        noise_pred = predict(ours, t)
        x_0 = scheduler.clean_latents(ours, noise_pred, t)
        ours = step(scheduler, ours, noise_pred, t, t_next, None, past)
        past.append((t, x_0))
        theirs = reference.step(predict(theirs, t), t, theirs).prev_sample
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_equals_diffusers(eta: float) -> None:
    scheduler, reference = Scheduler(), diffusers_sampler("ddim", 15)
    timesteps = scheduler.sampling_timesteps(15)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        latents, noise_pred, injected = (noise(2, 4, 8, 8, seed=3 * t + i) for i in range(3))
        theirs = reference.step(noise_pred, t, latents, eta=eta, variance_noise=injected).prev_sample
        assert relative_error(scheduler.ddim_step(latents, noise_pred, t, t_next, injected, eta=eta), theirs) <= 1e-5


def test_every_number_of_steps_has_diffusers_timesteps() -> None:
    for name in REFERENCES:
        for steps in range(1, 1000, 7):
            expected = diffusers_sampler(name, steps).timesteps.tolist()
            assert Scheduler().sampling_timesteps(steps, SAMPLERS[name][0]) == expected


def test_cubic_timesteps_are_the_formula_and_half_lie_in_the_noisiest_eighth() -> None:
    draws = torch.tensor([0.0, 0.05, 0.5, 0.9, 1 - 1e-7])
    assert Scheduler().cubic_timesteps(draws).tolist() == [999, 999, 875, 271, 0]
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    assert abs((Scheduler().cubic_timesteps(uniform) >= 875).float().mean() - 0.5) < 1e-3
