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
    biases = [noise(1, 1, 32)] * 2 + [noise(1, 4, 32)] * 2 + [noise(1, 16, 16)] * 2
    for wrong in (biases[:3], [*biases, biases[0]], []):
        with pytest.raises(ValueError, match=f"^the number of query biases must be 6, found {len(wrong)}$"):
            unet(latents, t, prompt, query_biases=wrong)
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"^prompt must be .* \(2, L, 16\), found .*\({count}, 3, 16\)"):
            unet(latents.repeat(2, 1, 1, 1), t, prompt.repeat(count, 1, 1))
    with pytest.raises(ValueError, match=r"^the number of pose features must be 3, found 1$"):
        unet(latents, t, prompt, pose_features=[noise(1, 16, 8, 8)])
    with pytest.raises(ValueError, match=r"^latents must be .* \(B, 4, h, w\), found .*\(1, 3, 8, 8\)"):
        unet(noise(1, 3, 8, 8), t, prompt)
    with pytest.raises(ValueError, match=r"^prompt must be .* \(1, L, 16\), found .*\(1, 3, 8\)"):
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
