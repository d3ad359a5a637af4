"""Table 3's baselines: their sizes, what trains, their conditions, CLIP, and the commands."""

import copy
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MICRO
from PIL import Image
from references import OfficialHGA, assert_parity, noise, randomise, relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import cfld.convert.__main__
import cfld.train
from cfld.baselines import ABLATIONS, ablation, build, from_dict, to_dict
from cfld.baselines.b1_to_b5 import CLIPPrompt, MultiScaleFeatures
from cfld.baselines.clip import CLIPConfig, CLIPImageEncoder
from cfld.config import SD15, TINY, CFLDConfig
from cfld.convert.export import in_layout
from cfld.convert.layouts import HGA_OFFICIAL, layout_of, rename
from cfld.convert.load import load_clip, to_ours
from cfld.folder import load, save
from cfld.hga import HGAConfig
from cfld.model import CFLD, Conditions
from cfld.sampling import SamplingConfig, generate, guidance
from cfld.tools.cli import UserError
from cfld.training.initial import initial_model
from cfld.training.options import TrainConfig
from cfld.vae import VAE, VAEConfig

# MICRO with as many blocks in the UNet as Stable Diffusion, and four positions in f_4: of a single token in a prompt
# the UNet could not choose.
SMALL = dataclasses.replace(
    MICRO,
    unet=dataclasses.replace(MICRO.unet, depth=2),
    hga=dataclasses.replace(MICRO.hga, branches=3),
    vae=VAEConfig(channels=(8, 8, 16), depth=1, groups=8),
    swin=dataclasses.replace(MICRO.swin, image_size=64),
    prd=dataclasses.replace(MICRO.prd, source_positions=4),
    adapter=dataclasses.replace(MICRO.adapter, pose_size=64),
)
SMALL_CLIP = CLIPConfig(image_size=28, patch_size=14, width=16, depth=2, num_heads=2)
ROWS = ("full", *ABLATIONS)
POSES, LATENTS, TIMESTEPS = noise(4, 21, 64, 64, seed=1), noise(4, 4, 16, 16, seed=2), torch.tensor([3, 500, 700, 981])


def slow(row: str):
    return pytest.param(row, marks=pytest.mark.slow)


def row_of(config: CFLDConfig, row: str) -> CFLDConfig:
    if row == "B2" and config is SMALL:
        return dataclasses.replace(ablation(config, row), clip=SMALL_CLIP)
    return config if row == "full" else ablation(config, row)


@functools.cache
def small(row: str) -> CFLD:
    """A small model with random weights, none of them zero. Tests only read it."""
    model = build(row_of(SMALL, row))
    randomise(model)
    model.freeze()
    return model.eval()


def sources(model: CFLD, count: int = 2) -> Tensor:
    return noise(count, 3, model.config.source_size, model.config.source_size, seed=3).clamp(-1, 1)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("row", "millions"),
    [("full", 248_224_312), ("B1", 154_493_688 - 27_308_096), ("B2", 77_186_496), ("B3", 225_674_680),
     ("B4", 232_125_880), ("B5", 151_335_480)],
)  # fmt: skip
def test_at_full_size_so_many_parameters_train_without_those_of_b1s_f4(row: str, millions: int) -> None:
    with torch.device("meta"):
        model = build(row_of(SD15, row))
    assert sum(p.numel() for p in trained(model).values()) == millions
    assert sum(p.numel() for p in model.unet.parameters()) == 859_520_964


TRAINED_PARTS = {
    "full": {"source_encoder", "prd", "hga", "pose_adapter", "unet", "null_prompt"},
    "B1": {"source_encoder", "hga", "pose_adapter", "unet", "null_prompt"},
    "B2": {"prd", "pose_adapter", "unet", "null_prompt"},
    "B3": {"source_encoder", "prd", "pose_adapter", "unet", "null_prompt"},
    "B4": {"source_encoder", "prd", "pose_adapter", "unet", "null_prompt"},
    "B5": {"source_encoder", "prd", "hga", "pose_adapter", "unet", "null_prompt"},
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_trains_its_parts_and_of_the_unet_the_columns_of_table_3(row: str) -> None:
    model = small(row)
    names = trained(model).keys()
    assert {name.split(".")[0] for name in names} == TRAINED_PARTS[row]
    attentions = [f"unet.up.{i}.attentions.{j}.block.cross_attention" for i in (1, 2, 3) for j in range(3)]
    letters = "qkv" if row == "B4" else "kv"
    assert {n for n in names if n.startswith("unet.")} == {f"{a}.to_{x}.weight" for a in attentions for x in letters}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == ({"unet", "source_encoder"} if row in ("B1", "B2") else {"unet"})
    f_4 = [name for name, _ in model.named_parameters() if ".stages.3." in name or ".merges.2." in name]
    if row == "B1":
        assert {name for name in frozen if name.startswith("source_encoder")} == set(f_4)
    whole = small("full").unet.state_dict()
    assert model.unet.state_dict().keys() == whole.keys()


@pytest.mark.parametrize("row", ROWS)
def test_every_trained_parameter_gets_a_gradient_but_the_choices_among_b2s_one_token(row: str) -> None:
    model = copy.deepcopy(small(row))
    conditions = model.drop(model.condition(sources(model), POSES), torch.tensor([True, False, False, False]), "paper")
    (model(LATENTS, TIMESTEPS, conditions) * noise(4, 4, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in trained(model).values())  # DistributedDataParallel waits for all of them
    rounding = 1e-6 if row == "B2" else 0
    without = {name for name, p in trained(model).items() if p.grad.abs().max() <= rounding}
    expected: set[str] = set()
    if row == "B2":
        expected = {name for name in trained(model) if re.search(r"cross_attention\.to_k|^prd.*\.to_[qk]\.", name)}
        assert len(expected) == 9 + 5 * 4
    assert without == expected
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("in_training", [False, True])
def test_what_two_rows_share_begins_with_the_same_weights(vae_alone: Path, in_training: bool) -> None:
    models = {}
    for row in ROWS:
        config = dataclasses.replace(row_of(SMALL, row), unet_trainable="all")
        if not in_training:
            torch.manual_seed(0)
            models[row] = build(config)
        elif row != "B2":  # which does not begin without CLIP
            models[row], _ = initial_model(TrainConfig(init=str(vae_alone)), config)
    whole = models["full"].state_dict()
    for row, model in models.items():
        state = model.state_dict()
        for part in ("unet.", "pose_adapter.", *(["source_encoder."] if row != "B2" else [])):
            assert all(torch.equal(x, whole[name]) for name, x in state.items() if name.startswith(part)), (row, part)
    assert all(torch.equal(x, whole[name]) for name, x in models["B3"].state_dict().items())


@pytest.mark.parametrize("config", [SD15, TINY, SMALL], ids=["sd15", "tiny", "small"])
def test_a_row_is_a_config_that_survives_json_and_is_made_of_the_full_model(config: CFLDConfig) -> None:
    rows = {row: row_of(config, row) for row in ROWS}
    assert len({json.dumps(to_dict(x)) for x in rows.values()}) == 6
    for row, values in rows.items():
        assert from_dict(json.loads(json.dumps(to_dict(values)))) == values
        if row in ("B1", "B2", "B3", "B5"):
            assert values.unet_trainable == config.unet_trainable
            with pytest.raises(UserError, match="made of the full model's config, found one of baseline B"):
                ablation(values, "B3")
    assert "baseline" not in to_dict(config)
    for wrong in ("B4", "B6", ["B1"], 1):
        with pytest.raises(ValueError, match="baseline must be one of B1, B2, B3, B5, found "):
            from_dict({"baseline": wrong})
    with pytest.raises(ValueError, match=r"unknown field clip: the fields here are .*"):
        from_dict({"clip": {}})


@pytest.mark.parametrize(
    ("row", "prompt", "biases"),
    [("full", "prd", True), ("B1", "multi_scale", False), ("B2", "clip", False), ("B3", "prd", False),
     ("B4", "prd", False), ("B5", "swin", True)],
)  # fmt: skip
def test_a_config_that_names_its_prompt_and_biases_is_read(row: str, prompt: str, biases: bool) -> None:
    expected = row_of(SMALL, row)
    fields = to_dict(expected)
    fields.pop("baseline", None)
    older = json.loads(
        json.dumps({"prompt": prompt, "biases": biases, "clip": dataclasses.asdict(SMALL_CLIP)} | fields)
    )
    assert from_dict(older) == expected
    for wrong in ({"biases": 1}, {"prompt": "text"}, {"prompt": "clip", "biases": True}, {"prompt": ["prd"]}):
        with pytest.raises(ValueError, match=r"prompt and biases must be one of .*, found "):
            from_dict(wrong)


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_the_prompt_has_its_tokens_and_follows_the_source(row: str) -> None:
    model = small(row)
    images = sources(model)
    conditions = model.condition(images, POSES)
    tokens = {"full": 3, "B1": 4, "B2": 1, "B3": 3, "B4": 3, "B5": 4}[row]
    assert conditions.prompt.shape == (4, *model.null_prompt.shape[1:]) == (4, tokens, 16)
    assert (conditions.query_biases is None) == (row in ("B2", "B3", "B4"))
    other = model.condition(images.flip(0), POSES)
    assert torch.equal(conditions.prompt, other.prompt) == (row == "B1")
    assert relative_error(model(LATENTS, TIMESTEPS, conditions), model(LATENTS, TIMESTEPS, other)) > 1e-4
    with pytest.raises(ValueError, match=r"source_images must be .* \(S, 3, \d+, \d+\), found .*\(1, 3, 20, 20\)"):
        model.condition(noise(1, 3, 20, 20), POSES)


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("row", ROWS)
def test_a_dropped_sample_has_the_unconditional_prompt_and_the_others_stay(row: str, recipe: str) -> None:
    model = small(row)
    conditions = model.condition(sources(model), POSES)
    dropped = torch.tensor([True, False, False, True])
    found = model(LATENTS, TIMESTEPS, model.drop(conditions, dropped, recipe))
    null = model.null_prompt.expand(4, -1, -1)
    biases = conditions.query_biases if row in ("full", "B5") else None  # nothing attends to B1's dropped features
    without = Conditions(null, None, None) if recipe == "paper" else Conditions(null, conditions.pose_features, biases)
    absent, full = model(LATENTS, TIMESTEPS, without), model(LATENTS, TIMESTEPS, conditions)
    assert torch.allclose(found, torch.where(dropped[:, None, None, None], absent, full), atol=1e-5)
    assert relative_error(absent, full) > 1e-3


@torch.no_grad()
def test_b1_keeps_its_features_under_the_released_recipe_and_attends_to_them_where_the_prompt_is_zero() -> None:
    """As in the official code: U_COND_UP_BLOCK_GUIDANCE is False, and features are added to prompts of zeros alone."""
    model = small("B1")
    conditions = model.condition(sources(model), POSES)
    dropped = torch.tensor([True, False, False, True])
    found = model.drop(conditions, dropped, "released")
    assert all(torch.equal(a, b) for a, b in zip(found.query_biases, conditions.query_biases, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found.pose_features, conditions.pose_features, strict=True))
    attention = model.unet.up[1].attentions[0].block.cross_attention
    tokens, features = noise(4, 9, 32), conditions.query_biases[0]
    context = torch.where(dropped[:, None, None], found.prompt, features)
    assert torch.equal(attention(tokens, found.prompt, features), attention(tokens, context))


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_the_branches_of_equation_7_are_nothing_pose_and_pose_with_source(row: str) -> None:
    model = small(row)
    conditions = model.condition(sources(model), POSES)
    weights, stacked = guidance(conditions, model.null_prompt, 1.5, 2.5)
    assert weights == [-0.5, -1.0, 2.5]
    null = model.null_prompt.expand(4, -1, -1)
    alone = [Conditions(null, None, None), Conditions(null, conditions.pose_features, None), conditions]
    together = model(LATENTS.repeat(3, 1, 1, 1), TIMESTEPS.repeat(3), stacked).chunk(3)
    for found, kind in zip(together, alone, strict=True):
        assert torch.allclose(found, model(LATENTS, TIMESTEPS, kind), atol=1e-5)


@torch.no_grad()
def test_b1s_features_are_the_keys_and_values_of_the_up_path_and_of_nothing_else() -> None:
    model = copy.deepcopy(small("B1"))
    seen: dict[str, Tensor] = {}
    for name, module in model.unet.named_modules():
        if name.endswith("cross_attention"):
            module.to_k.register_forward_hook(lambda m, args, out, n=name: seen.update({f"{n}.k": args[0]}))
            module.to_v.register_forward_hook(lambda m, args, out, n=name: seen.update({f"{n}.v": args[0]}))
    images = sources(model, 4)
    model(LATENTS, TIMESTEPS, model.condition(images, POSES))
    features = model.hga(model.source_encoder(images)[:-1])
    assert [x.shape for x in features] == [(4, 4, 16)] * 9
    names = [f"up.{i}.attentions.{j}.block.cross_attention" for i in (1, 2, 3) for j in range(3)]
    for name, feature in zip(names, features, strict=True):
        assert torch.equal(seen.pop(f"{name}.k"), feature) and torch.equal(seen.pop(f"{name}.v"), feature)
    assert len(seen) == 2 * 7 and not any(x.any() for x in seen.values())  # the down and mid blocks see zeros


def test_b1s_branches_are_the_official_ones_with_patches_and_begin_at_zero() -> None:
    widths, context = (64, 128, 192), 48
    reference = OfficialHGA(widths, (context,) * 3, depth=2)
    for i, conv in enumerate(reference.zero_conv_ins):
        patch = (8, 4, 2)[i // 3]  # theirs are counted from the finest
        reference.zero_conv_ins[i] = nn.Conv2d(conv.in_channels, conv.out_channels, patch, stride=patch)
    ours = MultiScaleFeatures(HGAConfig(widths, (5, 6, 7), depth=2), context)
    features = [noise(2, c, 16 // 2**i, 16 // 2**i, seed=i) for i, c in enumerate(widths)]
    assert not any(x.any() for x in ours(features))

    def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {rename(name, dict(HGA_OFFICIAL)): x for name, x in tensors.items()}

    assert_parity(ours, reference, translate, ours, reference, features)


CLIP = CLIPConfig(image_size=42, patch_size=14, width=32, depth=2, num_heads=2)


def their_clip(config: CLIPConfig):
    """CLIP's two encoders as transformers has them, with this image encoder."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=config.width, intermediate_size=4 * config.width, num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads, image_size=config.image_size, patch_size=config.patch_size,
    )  # fmt: skip
    text = CLIPTextConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def test_the_image_encoder_equals_transformers() -> None:
    from transformers import CLIPVisionModelWithProjection
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    reference, ours = CLIPVisionModelWithProjection(their_clip(CLIP).config.vision_config), CLIPImageEncoder(CLIP)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def run_theirs(x: list[Tensor]) -> list[Tensor]:
        return [reference.vision_model(pixel_values=((x[0] + 1) / 2 - mean) / std).pooler_output]

    def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_ours(tensors, "CLIPImageEncoder", "the reference")

    images = [noise(2, 3, 42, 42).clamp(-1, 1)]
    assert_parity(ours, reference, translate, lambda x: ours(x[0]), run_theirs, images)


def test_vit_l_14_has_the_names_and_shapes_of_transformers_model() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        ours, theirs = CLIPImageEncoder(), CLIPVisionModelWithProjection(config)
    shapes = {name: x.shape for name, x in theirs.state_dict().items() if name != "visual_projection.weight"}
    layout = layout_of("CLIPImageEncoder", "transformers")
    assert {name: x.shape for name, x in in_layout(ours, layout).items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == 303_179_776


def test_b2s_mapper_is_made_of_standard_pre_norm_blocks() -> None:
    kind = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
    theirs = nn.Sequential(*(nn.TransformerEncoderLayer(16, 1, 64, **kind) for _ in range(5)))

    def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        result = {}
        for name, x in tensors.items():
            name = name.replace("self_attn.out_proj", "attention.to_out")
            name = name.replace("linear1", "mlp.0").replace("linear2", "mlp.2")
            if "in_proj_" in name:
                names = (name.replace("self_attn.in_proj_", f"attention.to_{letter}.") for letter in "qkv")
                result |= dict(zip(names, x.chunk(3), strict=True))
            else:
                result[name] = x
        return result

    mapper, pooled = CLIPPrompt(32, 16), noise(2, 32)
    ours = mapper.blocks
    assert_parity(ours, theirs, translate, lambda x: [ours(x[0])], lambda x: [theirs(x[0])], [noise(2, 3, 16)])
    assert torch.equal(mapper(pooled), mapper.norm(ours(mapper.proj(pooled)[:, None])))


@pytest.fixture(scope="module")
def small_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(to_dict(SMALL)))
    return path


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of each row."""
    root = tmp_path_factory.mktemp("models")
    vae = VAE(SMALL.vae)
    randomise(vae)
    for row in ROWS:
        save(root / row, small(row), vae.eval())
    return root


@pytest.fixture(scope="module")
def vae_alone(small_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --stage vae leaves."""
    folder = tmp_path_factory.mktemp("vae")
    for name in ("config.json", "vae.safetensors"):
        shutil.copy(small_folders / "full" / name, folder)
    return folder


@pytest.fixture
def train(small_json: Path, fashion: Path, tmp_path: Path):
    """The arguments that train two steps, with these added."""

    def arguments(*more: object, out: str = "run") -> list[str]:
        argv = ["--config", small_json, "--data", fashion, "--out", tmp_path / out, "--batch", 2, "--steps", 2]
        argv += ["--precision", "fp32", "--lr", 1e-3, "--warmup", 1, "--sample-every", 0, "--device", "cpu"]
        return [str(a) for a in [*argv, "--save-every", 1, *more]]

    return arguments


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("row", [row if row in ("B1", "B2", "B5") else slow(row) for row in ABLATIONS])
def test_a_row_is_trained_stopped_resumed_loaded_and_sampled(
    row: str, train, small_folders: Path, tmp_path: Path, fails
) -> None:
    named = ["--ablation", row]
    if row == "B2":  # of a small CLIP only a config.json of its own says the widths
        named = ["--config", small_folders / row / "config.json"]
    assert cfld.train.main(train(*named, "--init", small_folders / row)) == 0
    run = tmp_path / "run"
    began_with = row if row != "B2" else None
    assert json.loads((run / "config.json").read_text())["options"]["ablation"] == began_with
    assert from_dict(json.loads((run / "model" / "config.json").read_text())) == row_of(SMALL, row)
    whole = weights(run)

    (run / "checkpoints" / "step_00000002.safetensors").unlink()
    shutil.rmtree(run / "model")
    other = "B5" if row != "B5" else "B3"
    fails(
        cfld.train.main, "--out", run, "--resume", "--ablation", other, words=[f"--ablation {other}", str(began_with)]
    )
    assert cfld.train.main(["--out", str(run), "--resume", *map(str, named)]) == 0
    assert all(torch.equal(x, whole[name]) for name, x in weights(run).items())

    model, vae = load(run / "model")
    before = load_file(small_folders / row / "model.safetensors")
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed <= trained(model).keys() and "null_prompt" in changed
    keypoints = torch.rand(1, 18, 2, generator=torch.Generator().manual_seed(0)) * 170
    photos, config = (Image.new("RGB", (176, 256), colour) for colour in ("red", "blue")), SamplingConfig(steps=2)
    red, blue = (generate(model, vae, photo, keypoints, config)[0] for photo in photos)
    assert red.size == (176, 256) and red.tobytes() != blue.tobytes()


@pytest.mark.slow
def test_two_processes_train_b1_whose_f4_nothing_reads_as_one(train, small_folders: Path, tmp_path: Path) -> None:
    argv = ["--ablation", "B1", "--init", small_folders / "B1"]
    assert cfld.train.main(train(*argv)) == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "cfld.train",
    ]
    done = subprocess.run([*launch, *train(*argv, out="two")], capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "two")
    assert max(relative_error(ours[name], theirs[name]) for name in theirs) <= 1e-3


def test_rows_without_clip_start_from_a_vae_alone_and_its_folder_need_not_know_them(
    train, vae_alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "all.json").write_text(json.dumps(to_dict(dataclasses.replace(SMALL, unet_trainable="all"))))
    argv = train("--ablation", "B1", "--init", vae_alone, "--config", tmp_path / "all.json", "--steps", 1)
    assert cfld.train.main(argv) == 0
    model, _ = load(tmp_path / "run" / "model")
    assert model.config == ablation(dataclasses.replace(SMALL, unet_trainable="all"), "B1")
    assert all(p.requires_grad for p in model.unet.parameters())


def test_a_base_takes_the_tokens_of_its_rows_prompt(train, vae_alone: Path, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps(to_dict(dataclasses.replace(SMALL, unet_trainable="all"))))
    argv = ["--stage", "base", "--ablation", "B5", "--init", vae_alone, "--config", tmp_path / "all.json"]
    assert cfld.train.main(train(*argv, "--data", "people:2x2@7", "--steps", 1)) == 0
    assert weights(tmp_path / "run")["null_prompt"].shape == (1, 4, 16)


def test_mistakes_are_one_line(train, small_folders: Path, vae_alone: Path, tmp_path: Path, fails) -> None:
    b3 = ["--ablation", "B3"]
    fails(cfld.train.main, *train(*b3, "--init", small_folders / "full"),
          words=["another architecture", "--ablation B3", "cfld.convert init", "baseline is None there"])  # fmt: skip
    fails(cfld.train.main, *train(*b3, "--init", small_folders / "B3", "--config", small_folders / "B3/config.json"),
          words=["made of the full model's config", "leave --ablation out"])  # fmt: skip
    tiny = ["--preset", "tiny", "--init", tmp_path / "tiny", "--data", "people:2x2@7", "--out", tmp_path / "run"]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(to_dict(TINY)))
    fails(cfld.train.main, *tiny, "--batch", 2, "--ablation", "B2",
          words=["CLIP's image encoder", "cannot train from nothing", "init --ablation B2 --clip FILE"])  # fmt: skip
    fails(cfld.train.main, *tiny, "--batch", 2, "--ablation", "B4", words=["only cross_qkv trains", "from nothing"])
    vae = ["--stage", "vae", "--preset", "tiny", "--data", "people:2x2@7", "--out", tmp_path / "run"]
    fails(cfld.train.main, *vae, *b3, words=["--stage vae", "--ablation B3"])
    assert not (tmp_path / "run").exists()


def test_folders_and_runs_of_the_full_model_whose_config_names_prompt_and_biases_load_and_resume(
    train, small_folders: Path, tmp_path: Path, fails
) -> None:
    assert cfld.train.main(train("--init", small_folders / "full")) == 0
    run = tmp_path / "run"
    after = weights(run)

    def older(values: dict) -> dict:
        return {"prompt": "prd", "biases": True, "clip": dataclasses.asdict(CLIPConfig())} | values

    def rewrite(path: Path, change) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    rewrite(run / "model" / "config.json", older)
    assert load(run / "model")[0].config == SMALL

    (run / "checkpoints" / "step_00000002.safetensors").unlink()
    shutil.rmtree(run / "model")
    path = run / "checkpoints" / "step_00000001.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["cfld"])
    save_file(load_file(path), path, {"cfld": json.dumps(facts | {"model": older(facts["model"])})})

    def without_option(values: dict) -> dict:
        values["options"].pop("ablation")
        return values | {"model": older(values["model"])}

    rewrite(run / "config.json", without_option)
    fails(cfld.train.main, "--out", run, "--resume", "--ablation", "B3", words=["--ablation B3 differs from None"])
    assert cfld.train.main(["--out", str(run), "--resume"]) == 0
    assert all(torch.equal(x, after[name]) for name, x in weights(run).items())


@pytest.fixture
def public(small_folders: Path, tmp_path: Path) -> dict[str, Path]:
    """Public files of SMALL's UNet, VAE, Swin and CLIP."""
    files = {name: tmp_path / "public" / f"{name}.safetensors" for name in ("unet", "vae", "swin")}
    (tmp_path / "public").mkdir()
    model, vae = load(small_folders / "full")
    for name, module, component, layout in (
        ("unet", model.unet, "UNet", "diffusers"),
        ("vae", vae, "VAE", "diffusers"),
        ("swin", model.source_encoder, "Swin", "Microsoft"),
    ):
        save_file({n: x.detach() for n, x in in_layout(module, layout_of(component, layout)).items()}, files[name])
    clip = their_clip(SMALL_CLIP)
    randomise(clip)
    clip.save_pretrained(tmp_path / "public" / "clip")
    return files | {"clip": tmp_path / "public" / "clip" / "model.safetensors"}


def test_a_folder_for_b2_holds_clip_and_no_swin(
    public, small_json: Path, small_folders: Path, tmp_path: Path, caplog, fails
) -> None:
    caplog.set_level("INFO")
    rest = ["--unet", public["unet"], "--vae", public["vae"], "--out", tmp_path / "start"]
    b2 = ["init", "--config", small_folders / "B2" / "config.json"]
    main = cfld.convert.__main__.main
    fails(main, *b2, *rest, words=["--clip must be given, the source encoder of B2", "weights/README.md"])
    fails(main, "init", "--config", small_json, "--ablation", "B2", *rest, words=["--clip must be given"])
    fails(main, *b2, "--clip", public["clip"], "--swin", public["swin"], *rest, words=["--swin must be left out"])
    fails(main, "init", "--config", small_json, "--clip", public["clip"], *rest,
          words=["--clip must be left out", "--swin"])  # fmt: skip
    fails(main, *b2, "--clip", public["unet"], *rest, words=["must hold a CLIPImageEncoder, found a UNet"])
    assert not (tmp_path / "start").exists()

    assert main([str(a) for a in [*b2, "--clip", public["clip"], *rest]]) == 0
    assert "CLIP's text encoder" in caplog.text and "the pooled output" in caplog.text
    model, _ = load(tmp_path / "start")
    assert model.config == row_of(SMALL, "B2")
    theirs = load_clip(public["clip"], SMALL_CLIP).state_dict()
    held = model.source_encoder.state_dict()
    assert held.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in held.items())
    assert not any(p.requires_grad for p in model.source_encoder.parameters())


@pytest.mark.parametrize("row", ["B1", slow("B3"), slow("B4"), "B5"])
def test_a_folder_for_another_row_shares_what_it_can_with_the_whole_methods(
    row: str, public, small_json: Path, tmp_path: Path, fails
) -> None:
    rest = ["--unet", public["unet"], "--vae", public["vae"], "--swin", public["swin"], "--config", small_json]
    for argv in (["--out", tmp_path / "full"], ["--ablation", row, "--out", tmp_path / row]):
        assert cfld.convert.__main__.main([str(a) for a in ["init", *rest, *argv]]) == 0
    whole, ours = (load(tmp_path / name)[0] for name in ("full", row))
    assert ours.config == ablation(SMALL, row)
    ours_state = ours.state_dict()
    shared = {n: x for n, x in whole.state_dict().items() if n in ours_state and ours_state[n].shape == x.shape}
    assert {"unet", "source_encoder", "pose_adapter"} <= {name.split(".")[0] for name in shared}
    different = {name.split(".")[0] for name, x in shared.items() if not torch.equal(ours_state[name], x)}
    assert different <= ({"hga"} if row == "B1" else set())
    fails(cfld.convert.__main__.main, "export", "--to", "official", tmp_path / row, tmp_path / "out",
          words=["only the full model", "--to diffusers"])  # fmt: skip
    assert cfld.convert.__main__.main(["export", "--to", "diffusers", str(tmp_path / row), str(tmp_path / "out")]) == 0
