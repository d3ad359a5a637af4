"""Public layouts: their names as the public files and libraries have them, both ways, strictly."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from references import DATA, diffusers_vae, noise, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfld.baselines import to_dict
from cfld.baselines.clip import CLIPImageEncoder
from cfld.config import SD15
from cfld.convert.__main__ import main
from cfld.convert.export import in_layout
from cfld.convert.layouts import LAYOUTS, layout_of
from cfld.convert.load import load_official, load_swin, load_unet, load_vae, to_ours
from cfld.folder import assign, load
from cfld.model import CFLD
from cfld.swin import Swin, SwinConfig
from cfld.tools.cli import UserError
from cfld.unet import UNet
from cfld.vae import VAE

OFFICIAL_KEYS = json.loads((DATA / "official_keys.json").read_text())


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in tensors.items()}


@pytest.fixture(scope="module")
def full() -> CFLD:
    with torch.device("meta"):
        return CFLD(SD15)


def test_the_whole_model_has_the_names_and_shapes_of_the_two_official_files(full: CFLD) -> None:
    assert shapes(in_layout(full, layout_of("CFLD", "official CFLD"))) == OFFICIAL_KEYS["pytorch_model.bin"]
    assert shapes(in_layout(full.unet, layout_of("UNet", "official CFLD"))) == OFFICIAL_KEYS["pytorch_model_1.bin"]


def test_unet_and_vae_have_the_names_and_shapes_of_sd15(full: CFLD) -> None:
    with torch.device("meta"):
        vae = VAE()
    assert shapes(in_layout(full.unet, layout_of("UNet", "diffusers"))) == OFFICIAL_KEYS["sd15_unet_diffusers_0.19.3"]
    assert shapes(in_layout(vae, layout_of("VAE", "diffusers"))) == OFFICIAL_KEYS["sd15_vae_diffusers_0.19.3"]


def test_microsofts_swin_is_read_whole_and_its_tables_resized() -> None:
    names = OFFICIAL_KEYS["microsoft_swin_base_patch4_window12_384"]
    tensors = to_ours({name: torch.empty(shape, device="meta") for name, shape in names.items()}, "Swin", "F")
    with torch.device("meta"):
        swin = Swin()
    expected = shapes(swin.state_dict())
    assert tensors.keys() == expected.keys()
    other = {name for name, shape in shapes(tensors).items() if shape != expected[name]}
    assert other == {name for name in expected if name.endswith("bias_table")}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.component}-{x.name}".replace(" ", "_"))
def test_every_layout_translates_there_and_back(layout, full: CFLD) -> None:
    with torch.device("meta"):
        parts = {"UNet": full.unet, "VAE": VAE(), "Swin": full.source_encoder, "CFLD": full}
        module = (parts | {"CLIPImageEncoder": CLIPImageEncoder()})[layout.component]
    ours = [name for name in module.state_dict() if not name.startswith("unet.")]
    theirs = [layout.theirs(name) for name in ours]
    assert len(set(theirs)) == len(theirs)
    assert [layout.ours(name) for name in theirs] == ours
    assert layout.signature in theirs or layout.name == "transformers"


def write(path: Path, module: torch.nn.Module, component: str, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {name: x.detach().to(dtype) for name, x in in_layout(module, layout_of(component, layout)).items()}
    if component == "VAE" and "LDM" in layout:
        tensors = {n: x[..., None, None].clone() if ".attn_1." in n and x.ndim == 2 else x for n, x in tensors.items()}
    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    return path


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("layout", ["diffusers", "official CFLD", "LDM single file"])
def test_a_unet_is_read_bit_for_bit(layout: str, tmp_path: Path) -> None:
    unet = micro_model()[0].unet
    assert_equal(load_unet(write(tmp_path / "u.safetensors", unet, "UNet", layout), MICRO.unet), unet)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers, old spelling", "LDM", "LDM single file"])
def test_a_vae_is_read_bit_for_bit(layout: str, tmp_path: Path) -> None:
    vae = micro_model()[1]
    assert_equal(load_vae(write(tmp_path / "v.safetensors", vae, "VAE", layout), MICRO.vae), vae)


def test_ldm_names_are_those_that_diffusers_converts(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet = randomise(UNet(dataclasses.replace(MICRO.unet, depth=2)))  # as LDM's numbers have it
    vae = micro_model()[1]
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    config |= {"down_block_types": ["x"] * 4, "up_block_types": ["x"] * 4, "num_class_embeds": None}
    theirs = convert_ldm_unet_checkpoint(
        load_file(write(tmp_path / "u.safetensors", unet, "UNet", "LDM single file")), dict(config)
    )
    ours = in_layout(unet, layout_of("UNet", "diffusers"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], x) for name, x in ours.items())
    theirs = convert_ldm_vae_checkpoint(
        load_file(write(tmp_path / "v.safetensors", vae, "VAE", "LDM single file")), dict(config)
    )
    ours = in_layout(vae, layout_of("VAE", "diffusers"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].reshape(x.shape), x) for name, x in ours.items())


def test_diffusers_reads_the_old_spelling_that_we_read(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    vae = micro_model()[1]
    reference = diffusers_vae(MICRO.vae.channels, MICRO.vae.groups, depth=MICRO.vae.depth)
    reference.save_config(tmp_path)
    write(tmp_path / "diffusion_pytorch_model.safetensors", vae, "VAE", "diffusers, old spelling")
    reference = AutoencoderKL.from_pretrained(tmp_path)
    images = noise(1, 3, 64, 64)
    assert torch.allclose(reference.encode(images).latent_dist.mean, vae.moments(images)[0], atol=1e-5)


def test_a_swin_file_of_timm_is_read(tmp_path: Path) -> None:
    from timm.models.swin_transformer import SwinTransformer

    c = MICRO.swin
    theirs = randomise(
        SwinTransformer(img_size=48, window_size=6, embed_dim=c.width, depths=c.depths, num_heads=c.num_heads)
    )
    save_file(theirs.state_dict(), tmp_path / "swin.safetensors")
    swin = load_swin(tmp_path / "swin.safetensors", c)
    table = theirs.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape == (11 * 11, 1)
    assert swin.stages[0][0].attention.bias_table.shape == (7 * 7, 1)
    assert torch.equal(swin.merges[2].reduction.weight, theirs.layers[3].downsample.reduction.weight)


def test_resizing_a_table_keeps_rows_rows_and_the_centre_the_centre(tmp_path: Path) -> None:
    config = SwinConfig(image_size=32, width=16, depths=(1,), num_heads=(2,), window=8)
    small = SwinConfig(image_size=16, width=16, depths=(1,), num_heads=(2,), window=4)
    swin = Swin(small)
    rows = torch.arange(7.0)[:, None].expand(7, 7) - 3
    with torch.no_grad():
        swin.stages[0][0].attention.bias_table.copy_(torch.stack([rows.flatten(), rows.T.flatten()], dim=1))
    tensors = in_layout(swin, layout_of("Swin", "Microsoft"))
    from cfld.convert.load import resize_bias_tables

    table = resize_bias_tables(
        to_ours({**tensors, "layers.0.downsample.norm.weight": torch.ones(1)}, "Swin", "F"), Swin(config)
    )
    grid = table["stages.0.0.attention.bias_table"].reshape(15, 15, 2)
    assert torch.allclose(grid[..., 0], grid[..., 0][:, :1].expand(15, 15), atol=1e-5)  # still a function of the row
    assert torch.allclose(grid[..., 1], grid[..., 0].T, atol=1e-5)
    assert torch.allclose(grid[7, 7], torch.zeros(2), atol=1e-5)
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()


def test_half_precision_files_give_the_same_numbers_in_float32(tmp_path: Path) -> None:
    unet = micro_model()[0].unet
    loaded = load_unet(write(tmp_path / "u.safetensors", unet, "UNet", "diffusers", torch.float16), MICRO.unet)
    assert loaded.conv_in.weight.dtype == torch.float32
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight.half().float())


@pytest.fixture
def public(tmp_path: Path, micro_json: str) -> dict[str, Path]:
    """Public files of MICRO: UNet, VAE, Swin, LDM single file, official checkpoint as pickles, and its config."""
    model, vae = micro_model()
    files = {
        "unet": write(tmp_path / "unet.safetensors", model.unet, "UNet", "diffusers"),
        "vae": write(tmp_path / "vae.safetensors", vae, "VAE", "diffusers, old spelling"),
        "swin": tmp_path / "swin.pth",
        "sd": tmp_path / "sd.safetensors",
        "model_bin": tmp_path / "pytorch_model.bin",
        "unet_bin": tmp_path / "pytorch_model_1.bin",
        "config": Path(micro_json),
    }
    swin = dict(in_layout(model.source_encoder, layout_of("Swin", "Microsoft")))
    rest = {
        "norm.weight": torch.ones(1),
        "norm.bias": torch.ones(1),
        "head.weight": torch.ones(1),
        "head.bias": torch.ones(1),
    }
    torch.save({"model": {name: x.detach() for name, x in (swin | rest).items()}}, files["swin"])
    single = load_file(write(tmp_path / "a", model.unet, "UNet", "LDM single file"))
    single |= load_file(write(tmp_path / "b", vae, "VAE", "LDM single file"))
    single |= {"cond_stage_model.transformer.x": torch.ones(1), "alphas_cumprod": torch.ones(3), "betas": torch.ones(3)}
    save_file(single, files["sd"])
    for name, module, layout in (
        ("model_bin", model, ("CFLD", "official CFLD")),
        ("unet_bin", model.unet, ("UNet", "official CFLD")),
    ):
        torch.save({n: x.detach() for n, x in in_layout(module, layout_of(*layout)).items()}, files[name])
    return files


@pytest.mark.parametrize("single", [False, True], ids=["parts", "single file"])
def test_init_makes_a_folder_of_public_and_fresh_parts(public, tmp_path: Path, single: bool, caplog) -> None:
    caplog.set_level("INFO")
    source = ["--sd", public["sd"]] if single else ["--unet", public["unet"], "--vae", public["vae"]]
    argv = ["init", *source, "--swin", public["swin"], "--config", public["config"], "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 0
    model, vae = load(tmp_path / "out")
    reference, reference_vae = micro_model()
    assert_equal(model.unet, reference.unet)
    assert_equal(vae, reference_vae)
    assert_equal(model.source_encoder, reference.source_encoder)
    assert (model.hga.levels[0][0].conv_out.weight == 0).all()  # fresh
    assert "the ImageNet classifier" in caplog.text
    assert ("the text encoder" in caplog.text) == single


def test_official_and_export_are_inverse_bit_for_bit(public, tmp_path: Path) -> None:
    argv = ["official", "--model", public["model_bin"], "--unet", public["unet_bin"], "--vae", public["vae"]]
    assert main([str(a) for a in [*argv, "--config", public["config"], "--out", tmp_path / "folder"]]) == 0
    assert main(["export", "--to", "official", str(tmp_path / "folder"), str(tmp_path / "again")]) == 0
    for name in ("pytorch_model", "pytorch_model_1"):
        before = torch.load(tmp_path / f"{name}.bin", weights_only=True)
        after = load_file(tmp_path / "again" / f"{name}.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    paths = [tmp_path / "again" / f"{name}.safetensors" for name in ("pytorch_model", "pytorch_model_1")]
    assert_equal(load_official(*paths, MICRO), micro_model()[0])


def test_diffusers_reads_an_export(micro_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    assert main(["export", "--to", "diffusers", str(micro_folder), str(tmp_path / "out")]) == 0
    model, vae = micro_model()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    prompt, latents, images = noise(1, 3, 16), noise(1, 4, 8, 8), noise(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(
            unet(latents, 7, prompt).sample, model.unet(latents, torch.tensor([7]), prompt), atol=1e-5
        )
        their_vae = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
        assert torch.allclose(their_vae.encode(images).latent_dist.mean, vae.moments(images)[0], atol=1e-5)
    assert_equal(load_unet(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors", MICRO.unet), model.unet)


def test_the_wrong_component_is_named(public) -> None:
    with pytest.raises(UserError, match="must hold a UNet, found a VAE"):
        load_unet(public["vae"], MICRO.unet)
    with pytest.raises(UserError, match="must hold a VAE, found a UNet"):
        load_vae(public["unet"], MICRO.vae)
    with pytest.raises(UserError, match="must hold a Swin, found a UNet"):
        load_swin(public["unet_bin"], MICRO.swin)


def test_every_missing_unexpected_or_reshaped_tensor_is_said(public, tmp_path: Path) -> None:
    tensors = load_file(public["unet"])
    tensors.pop("conv_out.bias")
    tensors["surprise.weight"] = torch.ones(2)
    tensors["conv_in.bias"] = torch.ones(5)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as error:
        load_unet(tmp_path / "bad.safetensors", MICRO.unet)
    for words in (
        "1 of ",
        "missing (first: conv_out.bias)",
        "1 unexpected (first: surprise.weight)",
        "(16,) expected, (5,) found",
    ):
        assert words in str(error.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    with open(tmp_path / "evil.bin", "wb") as file:
        pickle.dump({"weights": Attack()}, file)
    torch.save({"weights": Attack()}, tmp_path / "evil.pth")
    for name in ("evil.bin", "evil.pth"):
        with pytest.raises(UserError, match=name):
            load_unet(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_pickles_of_before_torch_1_6_are_read_and_odd_types_named(tmp_path: Path) -> None:
    unet = micro_model()[0].unet
    tensors = {name: x.detach() for name, x in in_layout(unet, layout_of("UNet", "diffusers")).items()}
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_equal(load_unet(tmp_path / "old.bin", MICRO.unet), unet)
    save_file({"x": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="x has type F8_E4M3"):
        load_unet(tmp_path / "odd.safetensors")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, micro_folder: Path) -> None:
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from cfld.convert.__main__ import main;"
        f"sys.exit(main(['export', '--to', 'official', {str(micro_folder)!r}, 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_at_the_command_line_are_one_line(public, tmp_path: Path, fails) -> None:
    rest = ["--swin", public["swin"], "--config", public["config"], "--out", tmp_path / "out"]
    fails(
        main,
        "init",
        "--unet",
        public["vae"],
        "--vae",
        public["vae"],
        *rest,
        words=["vae.safetensors", "must hold a UNet"],
    )
    fails(main, "init", "--unet", public["unet"], *rest, words=["--vae", "--sd"])
    fails(
        main,
        "init",
        "--unet",
        tmp_path / "none.safetensors",
        "--vae",
        public["vae"],
        *rest,
        words=["none.safetensors", "no such file"],
    )
    wide = ["--unet", public["unet"], "--vae", public["vae"], "--swin", public["swin"], "--out", tmp_path / "out"]
    fails(main, "init", *wide, words=["vae.safetensors", "another shape", "config.json"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    fails(main, "init", "--unet", public["unet"], "--vae", public["vae"], *rest, words=["already exists"])
    half = public["unet"].read_bytes()
    public["unet"].write_bytes(half[: len(half) // 2])
    rest[-1] = tmp_path / "other"
    fails(
        main,
        "init",
        "--unet",
        public["unet"],
        "--vae",
        public["vae"],
        *rest,
        words=["unet.safetensors", "safetensors", "again"],
    )
    values = to_dict(MICRO)
    values["prd"]["width"] = 24
    (tmp_path / "seam.json").write_text(json.dumps(values))
    rest[3] = tmp_path / "seam.json"
    fails(main, "init", "--unet", public["unet"], "--vae", public["vae"], *rest, words=["seam.json", "prd.width 24"])


def test_assign_to_a_meta_module_makes_it_real() -> None:
    unet = micro_model()[0].unet
    with torch.device("meta"):
        empty = UNet(MICRO.unet)
    assign(empty, unet.state_dict(), "memory")
    assert_equal(empty, unet)
