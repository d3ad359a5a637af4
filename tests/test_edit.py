"""Uses of a trained model: masks, interpolation, sequences, attention maps, and their commands."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MICRO
from PIL import Image
from references import DATA, noise, randomise, relative_error

from cfld import CFLD, VAE, SamplingConfig, people
from cfld.edit.__main__ import main, read_mask
from cfld.edit.attention_maps import (
    REGIONS,
    attention_map,
    choose_queries,
    overlay,
    region_masks,
    source_maps,
    token_maps,
    watching,
)
from cfld.edit.edit import edit, generate_frames, in_poses, interpolated
from cfld.folder import save
from cfld.photos.clip import pose_files
from cfld.photos.keypoints import read_pose
from cfld.photos.pixels import to_pictures, to_range, to_square
from cfld.sample import main as sample_command
from cfld.samplers import SAMPLERS
from cfld.sampling import Reference, denoise, pose_tensor, sample
from cfld.tools.cli import UserError
from cfld.unet import Attention

CSV = DATA / "fashion" / "fasion-resize-annotation-test.csv"
POSES = [f"{CSV}#{line.split(':')[0]}" for line in CSV.read_text().splitlines()[1:]]
PHOTOS = sorted((DATA / "fashion").rglob("*/id_*/*front.jpg"))

# MICRO with 16x16 latents, 2x2 positions for the queries to look at, and more queries than regions.
SMALL = dataclasses.replace(
    MICRO,
    image_size=128,
    swin=dataclasses.replace(MICRO.swin, image_size=64),
    prd=dataclasses.replace(MICRO.prd, num_queries=5, source_positions=4, depth=2),
    adapter=dataclasses.replace(MICRO.adapter, pose_size=64),
)
THREE = SamplingConfig(steps=3)


def small_model() -> tuple[CFLD, VAE]:
    model, vae = CFLD(SMALL), VAE(SMALL.vae)
    randomise(model), randomise(vae, 1)
    return model.eval(), vae.eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SOURCE, OTHER, POSE = noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=5), noise(1, 21, 64, 64, seed=1)
REFERENCE = noise(1, 3, 128, 128, seed=2).clamp(-1, 1)
MASK = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
MASK[..., 40:100, 30:70] = True


def hooks(model: CFLD) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_outside_the_mask_the_reference_stays_and_inside_it_does_not(sampler: str) -> None:
    model, vae = small_model()
    decoded = []
    vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(args[0] * SMALL.vae.scale))
    images = edit(model, vae, SOURCE, REFERENCE, MASK, POSE, SamplingConfig(3, sampler), generator=seeded())
    inside = MASK.expand_as(images)
    assert torch.equal(images[~inside], REFERENCE[~inside])
    assert (images - REFERENCE)[inside].abs().mean() > 0.1
    # Before the decoder as well: there the error outside is what the VAE itself would make, and a leak from the inside.
    rows, columns = slice(40 // 8, 104 // 8), slice(24 // 8, 72 // 8)  # every position that the mask touches
    outside = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    outside[..., rows, columns] = False
    outside = outside.expand(-1, 4, -1, -1)
    changed = (decoded[0] - vae.encode(REFERENCE)).abs()
    assert changed[outside].max() <= 1e-5 and changed[~outside].mean() > 0.1


@torch.no_grad()
def test_at_every_step_the_outside_is_the_reference_as_noisy_as_equation_1_has_it() -> None:
    model, vae = small_model()
    scheduler, conditions = model.scheduler, model.condition(SOURCE, POSE.repeat(8, 1, 1, 1))
    inside = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    inside[..., :8] = True
    reference = Reference(noise(1, 4, 16, 16, seed=3), inside)
    seen: list[tuple[int, torch.Tensor]] = []
    model.register_forward_pre_hook(lambda module, args: seen.append((int(args[1][0]), args[0][:8])))
    for sampler in SAMPLERS:
        seen.clear()
        denoise(model, vae, conditions, SamplingConfig(8, sampler), generator=seeded(), reference=reference)
        assert len(seen) == 8
        first = scheduler.implied_noise(seen[0][1], reference.latents, seen[0][0])[..., 8:]
        for t, latents in seen:
            implied = scheduler.implied_noise(latents, reference.latents, t)[..., 8:]
            assert abs(implied.square().mean() - 1) <= 0.1 and abs(implied.mean()) <= 0.1
            if sampler != "ddpm":  # no new noise: it is the one that was drawn
                assert relative_error(implied, first) <= 1e-3
    assert torch.allclose(first, torch.randn(8, 4, 16, 16, generator=seeded())[..., 8:], atol=1e-5)


@torch.no_grad()
def test_a_mask_of_everything_is_plain_sampling() -> None:
    model, vae = small_model()
    whole = torch.ones_like(MASK)
    edited = edit(model, vae, SOURCE, REFERENCE, whole, POSE, THREE, generator=seeded(4))
    assert torch.equal(edited, sample(model, vae, SOURCE, POSE, THREE, generator=seeded(4)))


@torch.no_grad()
def test_the_ends_of_an_interpolation_are_the_two_sources_exactly() -> None:
    model, vae = small_model()
    first, second = model.condition(SOURCE, POSE), model.condition(OTHER, POSE)
    between = interpolated(first, second, torch.tensor([0.0, 0.25, 1.0]))
    for ours, a, b in zip(
        [between.prompt, *between.query_biases],
        [first.prompt, *first.query_biases],
        [second.prompt, *second.query_biases],
        strict=True,
    ):
        assert torch.equal(ours[:1], a) and torch.equal(ours[2:], b)
        assert relative_error(ours[1:2], 0.75 * a + 0.25 * b) <= 1e-6
    parts = [interpolated(first, second, weight) for weight in torch.linspace(0, 1, 3).split(1)]
    frames = torch.cat([*generate_frames(model, vae, parts, THREE, seed=6)])
    for frame, source in ((frames[:1], SOURCE), (frames[2:], OTHER)):
        assert torch.equal(frame, sample(model, vae, source, POSE, THREE, generator=[seeded(6)]))
    assert relative_error(frames[:1], frames[1:2]) > 1e-3


@torch.no_grad()
def test_a_sequence_encodes_its_source_once_and_is_the_same_in_any_batches() -> None:
    model, vae = small_model()
    joints = np.random.default_rng(8).uniform(20, 170, (4, 18, 2))
    joints[3] = joints[0]
    poses = pose_tensor(model, joints)
    calls = []
    model.source_encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    frames = {
        batch: torch.cat([*generate_frames(model, vae, in_poses(model, SOURCE, joints, batch), THREE, seed=6)])
        for batch in (1, 3, 4)
    }
    assert calls == [1, 1, 1]
    for i in range(4):
        alone = sample(model, vae, SOURCE, poses[i : i + 1], THREE, generator=[seeded(6)])
        assert all(relative_error(frames[batch][i : i + 1], alone) <= 1e-4 for batch in frames)
    assert torch.equal(frames[1][0], frames[1][3])  # the same pose twice: all noise is shared
    assert relative_error(frames[1][0], frames[1][1]) > 1e-3


def test_grad_mode_is_the_callers_between_the_parts_of_a_sequence() -> None:
    model, _ = small_model()
    for part in in_poses(model, SOURCE, np.full((2, 18, 2), 50.0), 1):
        assert torch.is_grad_enabled() and not part.prompt.requires_grad


def test_the_poses_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("pose10.json", "pose2.json", "pose1.npy", "notes.txt", "._pose1.json", ".DS_Store", "photo.png"):
        (tmp_path / name).touch()
    found = pose_files(["x.csv#a", str(tmp_path)])
    assert [Path(path).name for path in found] == ["x.csv#a", "pose1.npy", "pose2.json", "pose10.json"]


def by_hand(attention: Attention, tokens: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | None) -> np.ndarray:
    """softmax((Q + B) K^T / sqrt(d)) from the weights, a head and a row at a time, in float64."""
    wq, wk = (linear.weight.detach().double().numpy() for linear in (attention.to_q, attention.to_k))
    width = len(wq) // attention.num_heads
    maps = np.zeros((len(tokens), tokens.shape[1], context.shape[1]))
    for row in range(len(tokens)):
        q = tokens[row].double().numpy() @ wq.T + (0 if bias is None else bias[row].double().numpy())
        k = context[row].double().numpy() @ wk.T
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
            maps[row] += scores / scores.sum(axis=1, keepdims=True) / attention.num_heads
    return maps


@torch.no_grad()
def test_maps_equal_the_softmax_computed_from_the_weights() -> None:
    attention = randomise(Attention(12, 3, 7))
    tokens, context, bias = noise(2, 6, 12), noise(2, 5, 7, seed=1), noise(2, 6, 12, seed=2)
    for extra in (None, bias):
        ours = attention_map(attention, tokens, context, extra).numpy()
        np.testing.assert_allclose(ours, by_hand(attention, tokens, context, extra), atol=1e-6)

    model, _ = small_model()
    maps = source_maps(model, torch.cat([SOURCE, OTHER]))
    assert maps.shape == (2, 2, 5, 2, 2)
    assert torch.allclose(maps.sum(dim=(-2, -1)), torch.ones(2, 2, 5), atol=1e-6)
    prd = model.prd
    f_4 = model.source_encoder(torch.cat([SOURCE, OTHER]))[-1]
    context = f_4.flatten(2).mT + prd.source_positions
    queries = prd.queries.expand(2, -1, -1)
    for i, block in enumerate(prd.blocks):
        tokens = block.norm1(queries + prd.query_positions)
        expected = by_hand(block.cross_attention, tokens, context, None).reshape(2, 5, 2, 2)
        np.testing.assert_allclose(maps[:, i].numpy(), expected, atol=1e-5)
        queries = block(queries, prd.query_positions, context)


@torch.no_grad()
def test_watching_changes_no_bit_and_leaves_no_hook() -> None:
    model, vae = small_model()
    paint = lambda: sample(model, vae, SOURCE, POSE, THREE, generator=[seeded(6)])  # noqa: E731
    before = paint()
    with token_maps(model, 1) as maps:
        assert hooks(model) > 0
        watched = paint()
    assert torch.equal(before, watched) and torch.equal(before, paint())
    source_maps(model, SOURCE)
    assert hooks(model) == 0 and maps.max() > 0
    with pytest.raises(KeyboardInterrupt), token_maps(model, 1):
        raise KeyboardInterrupt
    assert hooks(model) == 0


@torch.no_grad()
def test_maps_see_arguments_by_name() -> None:
    attention, maps = randomise(Attention(12, 3, 7)), []
    tokens, context, bias = noise(2, 6, 12), noise(2, 5, 7, seed=1), noise(2, 6, 12, seed=2)
    with watching([attention], maps.append):
        attention(tokens, context, bias)
        attention(tokens, query_bias=bias, context=context)
    assert maps[0].shape == (2, 6, 5) and torch.equal(maps[0], maps[1])


@torch.no_grad()
def test_token_maps_share_each_position_among_the_tokens_and_are_of_the_conditional_branch() -> None:
    model, vae = small_model()
    poses = torch.cat([POSE, noise(1, 21, 64, 64, seed=8)])

    def maps(**settings: object) -> torch.Tensor:
        with token_maps(model, 2) as found:
            sample(model, vae, SOURCE, poses, SamplingConfig(**settings), generator=[seeded(6), seeded(7)])
        return found

    guided = maps(steps=3)
    assert guided.shape == (2, 5, 16, 16)
    assert torch.allclose(guided.sum(dim=1), torch.ones(2, 16, 16), atol=1e-5)
    # In the first step all have the same latents, so the scales make no difference to the conditional branch.
    alone = maps(steps=1, pose_scale=1.0, appearance_scale=1.0)
    for scales in ((2.0, 2.0), (3.0, 1.5)):
        assert relative_error(maps(steps=1, pose_scale=scales[0], appearance_scale=scales[1]), alone) <= 1e-5
    assert relative_error(alone[:1], alone[1:]) > 1e-4

    # By hand: the mean over all cross-attentions, each resized to the latents.
    found = []
    cross = [m for name, m in model.unet.named_modules() if name.endswith("cross_attention")]
    handles = [m.register_forward_hook(lambda m, args, out: found.append(attention_map(m, *args))) for m in cross]
    sample(model, vae, SOURCE, poses, SamplingConfig(1, "ddpm", 1.0, 1.0), generator=[seeded(6), seeded(7)])
    for handle in handles:
        handle.remove()
    assert len(found) == 1 * 3 + 1 + 2 * 3
    squares = [x.mT.reshape(2, 5, int(x.shape[1] ** 0.5), -1) for x in found]
    resized = [torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear") for x in squares]
    assert relative_error(alone, torch.stack(resized).mean(0)) <= 1e-5


def test_each_region_gets_the_query_that_overlaps_it_most_and_none_two() -> None:
    regions = torch.zeros(2, 4, 4, 4)
    for k in range(4):
        regions[:, k, k] = 1  # four rows of a picture
    shares = {  # of a query's attention, by row; queries 3 and 4 look everywhere alike
        0: (0.1, 0.1, 0.7, 0.1), 1: (0.55, 0.1, 0.2, 0.15), 2: (0.1, 0.2, 0.1, 0.6), 5: (0.6, 0.3, 0.05, 0.05),
    }  # fmt: skip
    maps = torch.full((2, 6, 4, 4), 3.0)  # of any scale
    for query, rows in shares.items():
        maps[:, query] = torch.tensor(rows)[:, None]
    chosen, overlaps = choose_queries(maps, regions)
    assert chosen == [1, 5, 0, 2]  # 5 is the best of the first row, but nearly all the second has
    assert overlaps.shape == (6, 4) and torch.allclose(overlaps[3], torch.ones(4))
    assert torch.allclose(overlaps[5], 4 * torch.tensor(shares[5]))
    assert len(set(choose_queries(torch.ones(2, 4, 4, 4), regions)[0])) == 4
    with pytest.raises(UserError, match="4 regions need as many queries or more, found 3"):
        choose_queries(maps[:, :3], regions)


def test_regions_are_the_shares_of_parts_in_each_position() -> None:
    labels = np.zeros((1, 6, 4), np.uint8)
    labels[0, :3, :2] = people.PARTS.index("hair")
    labels[0, :3, 2] = people.PARTS.index("eyes")
    labels[0, 3:, 3] = people.PARTS.index("jacket")
    masks = region_masks(labels, (2, 2))
    assert masks.shape == (1, 4, 2, 2) and list(REGIONS) == ["head", "upper", "middle", "lower"]
    assert masks[0, 0].tolist() == [[1, 0.5], [0, 0]] and masks[0, 1].tolist() == [[0, 0], [0, 0.5]]
    assert not masks[0, 2:].any()


def test_an_overlay_is_bright_where_the_map_is_high() -> None:
    shown = overlay(Image.new("RGB", (40, 60), "white"), torch.tensor([[0.0, 0.1], [0.2, 0.4]]))
    light = [sum(shown.getpixel(place)) for place in ((5, 5), (35, 5), (5, 55), (35, 55))]
    assert shown.size == (40, 60) and light == sorted(light) and light[0] < light[3] - 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    save(path, *small_model())
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    picture = Image.new("L", Image.open(PHOTOS[0]).size)
    picture.paste(255, (60, 80, 120, 160))
    picture.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def common(folder: Path) -> tuple[object, ...]:
    return "--model", folder, "--steps", 2, "--device", "cpu", "--seed", 3


def test_edit_keeps_the_photo_outside_the_mask(folder: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    argv = ["edit", *common(folder), "--source", PHOTOS[1], "--reference", PHOTOS[0], "--pose", POSES[0]]
    assert main([str(a) for a in [*argv, "--mask", mask, "--out", out, "--size", "128x88"]]) == 0
    with Image.open(PHOTOS[0]) as photo, Image.open(out) as edited:
        size, square = photo.size, to_range(to_square(photo, 128))
        difference = np.abs(np.asarray(edited, int) - np.asarray(to_pictures(square[None], (128, 88))[0], int)).max(-1)
    inside = np.zeros((128, 88), bool)
    inside[40:80, 27:64] = True  # every pixel that takes from one of the model's that the mask touches
    assert size == (176, 256) and difference[~inside].max() == 0 and difference[inside].mean() > 10


def test_edit_of_a_photo_of_any_size_leaves_its_other_pixels_alone(folder: Path, tmp_path: Path) -> None:
    reference, mask = Image.open(PHOTOS[0]).resize((220, 320)), Image.new("L", (220, 320))
    mask.paste(255, (60, 90, 150, 200))
    reference.save(tmp_path / "reference.png"), mask.save(tmp_path / "mask.png")
    argv = ["edit", *common(folder), "--source", PHOTOS[1], "--reference", tmp_path / "reference.png"]
    argv += ["--pose", POSES[0], "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png"]
    assert main([str(a) for a in argv]) == 0
    before, after = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("reference", "out"))
    changed = (before != after).any(-1)
    assert changed[90:200, 60:150].mean() > 0.9
    changed[90:200, 60:150] = False
    assert not changed.any()


@torch.no_grad()
def test_a_soft_edge_changes_only_the_inside_of_the_masks_border() -> None:
    model, vae = small_model()
    hard, soft = (
        edit(model, vae, SOURCE, REFERENCE, MASK, POSE, THREE, generator=seeded(), feather=feather)
        for feather in (0, 5)
    )
    assert torch.equal(hard, edit(model, vae, SOURCE, REFERENCE, MASK, POSE, THREE, generator=seeded()))
    band = MASK.clone()
    band[..., 45:95, 35:65] = False  # deeper than 5 pixels
    band = band.expand_as(hard)
    assert torch.equal(soft[~band], hard[~band]) and (soft - hard)[band].abs().mean() > 0.01
    between = torch.minimum(hard, REFERENCE) - 1e-6, torch.maximum(hard, REFERENCE) + 1e-6
    assert (soft >= between[0]).all() and (soft <= between[1]).all()


@pytest.mark.parametrize("size", [(), ("--size", "128x88")])
def test_the_command_has_a_soft_edge_that_can_be_switched_off(
    folder: Path, mask: Path, tmp_path: Path, size: tuple[str, ...], fails
) -> None:
    argv = ["edit", *common(folder), "--source", PHOTOS[1], "--reference", PHOTOS[0], "--pose", POSES[0], *size]
    argv += ["--mask", mask, "--out"]
    made = {}
    for name, more in (("default", ()), ("4", ("--feather", 4)), ("hard", ("--feather", 0))):
        assert main([str(a) for a in [*argv, tmp_path / f"{name}.png", *more]]) == 0
        made[name] = np.asarray(Image.open(tmp_path / f"{name}.png"), int)
    assert np.array_equal(made["default"], made["4"])  # 1/64 of 256
    changed = (made["4"] != made["hard"]).any(axis=-1)
    part = np.s_[84:156, 64:116] if not size else np.s_[45:75, 35:55]  # deeper than 4 pixels of the photo
    assert changed.any() and not changed[part].any()
    whole = np.s_[80:160, 60:120] if not size else np.s_[37:83, 27:64]
    changed[whole] = False
    assert not changed.any()
    fails(main, *argv, tmp_path / "x.png", "--feather", -1, words=["--feather must be within 0 .. 8192", "found -1"])
    fails(main, *argv, tmp_path / "x.png", "--feather", "nan", words=["--feather", "found nan"])


def test_interpolate_begins_and_ends_with_what_the_plain_command_paints(folder: Path, tmp_path: Path) -> None:
    pose = ["--appearance-scale", 20, "--pose", POSES[0], "--out"]  # so that random weights follow the source visibly
    argv = ["interpolate", *common(folder), "--source", PHOTOS[0], "--source", PHOTOS[1], *pose, tmp_path / "i.gif",
            tmp_path / "i.png", "--frames", 3, "--batch", 1]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    with Image.open(tmp_path / "i.gif") as animation, Image.open(tmp_path / "i.png") as strip:
        assert animation.n_frames == 3 and strip.size == (3 * 176, 256)
        tiles = [np.asarray(strip.crop((176 * i, 0, 176 * (i + 1), 256)), int) for i in (0, 2)]
    assert np.abs(tiles[0] - tiles[1]).max() > 3
    for photo, tile in zip(PHOTOS, tiles, strict=False):
        out = tmp_path / f"{photo.stem}.png"
        assert sample_command([str(a) for a in [*common(folder), "--source", photo, *pose, out, "--force"]]) == 0
        with Image.open(out) as plain:
            assert np.abs(np.asarray(plain, int) - tile).max() <= 1  # rounding, where it crosses a half


def test_sequence_takes_a_folder_and_shares_its_noise(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "poses").mkdir()
    for i in (0, 1, 2):
        keypoints = read_pose(POSES[i])
        np.save(tmp_path / "poses" / f"{i}.npy", np.where(keypoints >= 0, keypoints, 0)[:, ::-1])
    shutil.copy(tmp_path / "poses" / "0.npy", tmp_path / "poses" / "2.npy")
    argv = ["sequence", *common(folder), "--source", PHOTOS[0], "--pose", tmp_path / "poses", "--batch", 2, "--fps", 4]
    assert main([str(a) for a in [*argv, "--out", tmp_path / "s.gif", tmp_path / "s.png", "--across", 2]]) == 0
    with Image.open(tmp_path / "s.gif") as animation, Image.open(tmp_path / "s.png") as sheet:
        assert animation.n_frames == 3 and animation.info["duration"] == 250
        assert sheet.size == (2 * 176, 2 * 256)
        first, other, again = (
            np.asarray(sheet.crop((x, y, x + 176, y + 256)), int) for x, y in ((0, 0), (176, 0), (0, 256))
        )
    assert np.abs(first - again).max() <= 1 and np.abs(first - other).max() > 1  # the same pose, in another batch


def test_a_mask_drawn_on_a_transparent_layer_is_white_where_it_was_drawn(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (2, 2, 4, 4))
    layer.save(tmp_path / "layer.png")
    assert np.count_nonzero(read_mask(str(tmp_path / "layer.png"), Image.new("RGB", (10, 10)))) == 4


def test_attention_writes_one_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["attention", *common(folder), "--source", PHOTOS[0], "--people", 1, "--pose", POSES[0]]
    assert main([str(a) for a in [*argv, "--out", tmp_path / "a.png"]]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == list(REGIONS)
    with Image.open(
        tmp_path / "a.png"
    ) as sheet:  # five tiles or queries wide; the four, the mean, two blocks, and again
        assert sheet.size == (5 * 92, (1 + 3 + 2) * 144)


def test_mistakes_are_one_line(folder: Path, micro_folder: Path, mask: Path, tmp_path: Path, fails) -> None:
    out = ["--out", tmp_path / "o.png"]
    asked = ["--model", folder, "--source", PHOTOS[0], "--pose", POSES[0], *out]
    editing = ["edit", *asked, "--reference", PHOTOS[0], "--mask"]
    Image.new("L", (100, 256), 255).save(tmp_path / "narrow.png")
    fails(main, *editing, tmp_path / "narrow.png", words=["narrow.png", "as large as", "176x256", "found 100x256"])
    Image.new("L", (176, 256), 90).save(tmp_path / "dark.png")
    fails(main, *editing, tmp_path / "dark.png", words=["dark.png", "white", "no white"])
    fails(main, *editing, tmp_path / "none.png", words=["none.png", "no such image"])
    fails(main, "edit", *asked, "--reference", tmp_path / "x.png", "--mask", mask, words=["x.png", "no such image"])
    fails(main, *editing, mask, "--steps", 0, words=["--steps", "found 0"])
    fails(main, "interpolate", *asked, words=["--source", "two photos", "found 1"])
    fails(main, "interpolate", *asked, "--source", PHOTOS[1], "--frames", 1, words=["--frames", "found 1"])
    fails(main, "interpolate", *asked, "--source", PHOTOS[1], "--fps", 999, words=["--fps", "1 .. 120", "found 999"])
    fails(main, "sequence", *asked, "--batch", 0, words=["--batch", "found 0"])
    (tmp_path / "empty").mkdir()
    fails(main, "sequence", *asked, "--pose", tmp_path / "empty", words=["empty", ".json, .npy", "none"])
    fails(main, "attention", *asked, "--appearance-scale", 0, words=["--appearance-scale", "found 0"])
    fails(main, "attention", *asked, "--people", 0, words=["--people", "found 0"])
    three = ["--model", micro_folder, *asked[2:]]
    fails(main, "attention", *three, "--people", 1, words=["4 regions", "found 3"])
    (tmp_path / "o.png").write_text("mine")
    for command in (["sequence"], ["attention"], ["edit", "--reference", PHOTOS[0], "--mask", mask]):
        fails(main, command[0], *asked, *command[1:], words=["o.png", "--force"])
    assert (tmp_path / "o.png").read_text() == "mine"
