"""The table of docs/wrong_input.md: which inputs are tried, by which tests, and what the product says.

PYTHONPATH=.:benchmarks python tests/test_wrong_input.py        # writes the table anew
"""

import contextlib
import importlib
import inspect
import io
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import test_api
import test_formats
import test_fuzz
import test_splits
import test_units
import torch
from conftest import MICRO, micro_model
from PIL import Image
from test_formats import BODY

import cfld
from cfld.baselines import read_config, to_dict
from cfld.data.__main__ import main as data
from cfld.data.pairs import open_pairs
from cfld.edit.__main__ import main as edit
from cfld.photos.clip import pose_files, read_clip
from cfld.photos.formats import frames_in
from cfld.photos.keypoints import check_confidence, read_annotations, read_joints, read_pose
from cfld.pose import FRAME
from cfld.tools.cli import pick_device
from cfld.tools.files import refuse_overwrite
from cfld.tools.pictures import read_image
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.training.checkpoint import read_learnt
from cfld.training.options import TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "wrong_input.md"
HEAD = "| kind | cases | answer |\n|---|---|---|\n"
LONGEST = 170  # characters of what the product says
STANDING = next(joints for joints in test_units.DEEPFASHION if (joints >= 0).all())


class Kind(NamedTuple):
    """A row of the table.

    kind: in the words of the page
    tests: FILE.NAME or FILE.NAME[number of the cases it goes through]
    says: what makes the product say it in a folder, and returns it if it is printed; or what it gets in our own words,
        of which the quoted ones are in the tests
    """

    kind: str
    tests: str
    says: Callable[[Path], object] | str


def openpose(folder: Path, scale: float, name: str = "pose.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(test_units.openpose(test_units.points_of(STANDING, scale))))
    return path


def array(folder: Path, values: np.ndarray) -> Path:
    np.save(folder / "pose.npy", values)
    return folder / "pose.npy"


def mediapipe(values: np.ndarray) -> np.ndarray:
    """Numbers (18, 2) as those of MediaPipe's 33 joints, all seen."""
    points = np.tile(values[:1, ::-1], (33, 1))
    points[: len(values)] = values[:, ::-1]
    return np.concatenate([points, np.ones((33, 1))], axis=1)


def shifted(folder: Path) -> object:
    poses = [np.where(joints >= 0, joints + np.array([0, 40]), -1) for joints in test_units.DEEPFASHION]
    return read_annotations(test_units.rows(folder / "fasion-resize-annotation-train.csv", poses))


def printed(main: Callable[..., object], *argv: object) -> str:
    """What a command prints, its error if it is one."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return err.getvalue().rpartition("error: ")[2] if code else out.getvalue()


def empty_frames(folder: Path) -> str:
    path = folder / "clip.json"
    path.write_text(json.dumps([test_formats.comfy(BODY), test_formats.comfy(), test_formats.comfy(BODY)]))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        read_clip(pose_files([str(path)]), {})
    return out.getvalue()


def clip_of_one(folder: Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pose_files([str(array(folder, np.tile(STANDING, (30, 1, 1))))])
    return out.getvalue()


def passed_over(folder: Path) -> str:
    root = test_formats.own(folder / "own")
    (root / "ann" / "3.tif").touch()
    (root / "stray.jpg").touch()
    said = printed(data, "pairs", root)
    return next(line for line in said.splitlines() if "passed over: 1" in line)


def grey(folder: Path) -> object:
    Image.fromarray(np.full((9, 9), 300, np.float32)).save(folder / "grey.tif")
    return read_image(folder / "grey.tif")


def heic(folder: Path) -> object:
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with mock.patch("cfld.tools.pictures.open_heif", lambda: False):
        return read_image(folder / "a.heic")


def no_image(folder: Path) -> object:
    (folder / "a.jpg").write_text("moved")
    return read_image(folder / "a.jpg")


def damaged_photos(folder: Path) -> str:
    root = test_splits.fashion_copy(folder / "data")
    for path in sorted((root / "MEN").rglob("*.jpg"))[:2]:
        path.write_text("moved")
    return printed(data, "prepare", root, "--workers", 1)


def lists_of_before(folder: Path) -> str:
    root = test_splits.own(folder / "mine")
    printed(data, "pairs", root)
    (root / "train.lst").unlink()
    return printed(data, "pairs", root, "--test-share", 0)


def deep_row(folder: Path) -> object:
    path = folder / "deep.csv"
    path.write_text("name:keypoints_y:keypoints_x\nx.jpg: " + "[" * 100_000 + ": []\n")
    return read_joints(f"{path}#x.jpg")


def path_in_names(folder: Path) -> str:
    root = test_splits.fashion_copy(folder / "data")
    (root / "fasion-resize-pairs-test.csv").write_text("from,to\n../x.jpg,../x.jpg\n")
    return printed(data, "prepare", root)


def people_json(folder: Path) -> object:
    (folder / "people.json").write_text('{"seed": 1.5, "identities": 3}')
    return open_pairs(folder, "train", 64, 32)


def huge_config(folder: Path) -> object:
    values = to_dict(MICRO)
    values["unet"]["context_width"] = values["prd"]["width"] = 2**40
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder / "config.json")


def whole_numbers(folder: Path) -> object:
    cfld.save(folder / "micro", *micro_model())
    path = folder / "micro" / "model.safetensors"
    tensors, metadata = read_safetensors(path)
    name = next(name for name, x in tensors.items() if x.ndim == 2)
    write_tensors(path, tensors | {name: tensors[name].to(torch.int8)}, metadata)
    return cfld.load(folder / "micro")


def damaged_checkpoint(folder: Path) -> object:
    write_tensors(folder / "step_00000004.safetensors", {"weights/x": torch.ones(1)}, {"cfld": "{x"})
    return read_learnt(folder / "step_00000004.safetensors")


def joint_of_nothing(folder: Path) -> object:
    content = json.loads(openpose(folder, 1).read_text())
    content["people"][0]["pose_keypoints_2d"][7] = None
    (folder / "pose.json").write_text(json.dumps(content))
    return read_pose(folder / "pose.json")


def no_ffmpeg(folder: Path) -> str:
    Image.new("RGB", (176, 256)).save(folder / "a.png")
    argv = ("sequence", "--source", folder / "a.png", "--pose", openpose(folder, 1), "--out", folder / "out.mp4")
    with mock.patch("shutil.which", lambda name: None):
        return printed(edit, *argv)


def dotdot(folder: Path) -> object:
    (folder / "pose.json").write_text("precious")
    return refuse_overwrite(folder / "new" / ".." / "pose.json", force=False)


KINDS = [
    # Poses.
    Kind(
        "joints of a larger copy of the photo",
        "test_units.test_joints_of_a_larger_copy_are_refused_with_the_size_that_would_fit "
        "test_units.test_every_command_refuses_joints_of_another_copy",
        lambda folder: read_pose(openpose(folder, 2), FRAME),
    ),
    Kind(
        "joints of a smaller copy",
        "test_units.test_joints_of_a_smaller_copy_are_refused_where_nothing_says_their_size",
        lambda folder: read_pose(openpose(folder, 0.4)),
    ),
    Kind(
        "height and width in the other order",
        "test_units.test_a_size_in_the_other_order_is_named",
        lambda folder: read_pose(openpose(folder, 4), (704, 1024)),
    ),
    Kind(
        "fractions without a size, or of one side for both",
        "test_units.test_fractions_need_a_size_and_of_mediapipes_some_may_lie_outside "
        "test_units.test_fractions_of_one_side_for_both_are_refused",
        lambda folder: read_pose(array(folder, mediapipe(STANDING / FRAME))),
    ),
    Kind(
        "coordinates from -1 to 1, and in metres",
        "test_units.test_coordinates_from_minus_1_to_1_and_metres_are_refused",
        lambda folder: read_pose(array(folder, mediapipe(STANDING / FRAME * 2 - 1)), (512, 352)),
    ),
    Kind(
        "keypoints of another frame, given to `generate`",
        "test_units.test_generate_refuses_keypoints_of_another_frame_and_sizes_of_another_shape",
        lambda folder: test_api.in_photo(keypoints=STANDING * 4.3),
    ),
    Kind(
        "annotations in another frame",
        "test_units.test_annotations_in_another_frame_are_refused",
        shifted,
    ),
    Kind(
        "files of estimators and editors, and others",
        "test_formats.test_each_row_of_the_table_is_read test_formats.test_two_drawn_people_are_refused",
        lambda folder: frames_in({"joints": [1, 2, 3]}),
    ),
    Kind(
        "those files with a value changed",
        "test_formats.test_damaged_content_is_read_or_refused_in_a_sentence[300] "
        f"test_fuzz.test_poses[{test_fuzz.CASES}]",
        joint_of_nothing,
    ),
    Kind(
        "a clip with frames of nobody",
        "test_formats.test_frames_without_a_person_are_held_over_or_skipped_and_said "
        "test_formats.test_frames_of_nobody_in_one_file_are_held_over",
        empty_frames,
    ),
    Kind(
        "an array of people who may be frames",
        "test_formats.test_a_file_of_one_person_a_frame_is_a_clip_where_it_is_the_only_one",
        clip_of_one,
    ),
    Kind(
        "OpenPose's own names of files",
        "test_formats.test_joints_beside_a_photo_have_openposes_name_or_the_photos",
        "`{}_keypoints.json` beside a photo is read",
    ),
    Kind(
        "a confidence that is none",
        "test_formats.test_the_confidence_of_pairs_is_checked_once",
        lambda folder: check_confidence(5),
    ),
    # Photos.
    Kind(
        "photos of a wide gamut, in CMYK, with an alpha channel, turned",
        "test_pictures.test_a_photo_of_a_wide_gamut_looks_as_in_srgb "
        "test_pictures.test_transparency_and_palettes_keep_their_colours "
        "test_pictures.test_a_photo_without_a_profile_or_with_srgbs_or_a_damaged_one_stays_bit_for_bit",
        "they look to the model as they do to people",
    ),
    Kind(
        "greys of 16 and 32 bits",
        "test_pictures.test_greys_of_16_bits_and_floats_are_scaled_and_others_refused",
        grey,
    ),
    Kind(
        "HEIC without the extra",
        "test_pictures.test_without_the_extra_heic_is_one_line test_pictures.test_heic_is_read_by_the_extra",
        heic,
    ),
    Kind("damaged images, of six formats", f"test_fuzz.test_images[{test_fuzz.CASES}]", no_image),
    Kind(
        "photos that `data pairs` passes over",
        "test_formats.test_what_pairs_passes_over_is_counted_and_named",
        passed_over,
    ),
    # Data sets.
    Kind(
        "damaged photos, at `data prepare`",
        "test_splits.test_every_photo_is_opened_once_and_all_damaged_ones_are_named",
        damaged_photos,
    ),
    Kind(
        "names with folders, too long, or alike but for the ending",
        "test_splits.test_a_name_with_folders_is_refused_where_lists_are_read "
        "test_splits.test_names_that_evaluate_cannot_use_are_refused_where_they_are_made",
        path_in_names,
    ),
    Kind(
        "lists of before, beside new ones",
        "test_splits.test_a_test_split_of_before_is_not_left_beside_new_lists",
        lists_of_before,
    ),
    Kind(
        "photos in both splits",
        "test_splits.test_a_photo_in_both_splits_is_not_validated_on",
        "`no photo may be in both splits`, and which ones are",
    ),
    Kind(
        "a row of a table that no parser takes", "test_units.test_a_row_too_deep_for_the_parser_is_one_line", deep_row
    ),
    Kind(
        "damaged lists, pairs and annotations",
        f"test_fuzz.test_lists_pairs_and_annotations[{test_fuzz.CASES}]",
        "file and line",
    ),
    Kind(
        "a people.json of other values",
        "test_splits.test_a_people_json_without_whole_numbers_is_one_line",
        people_json,
    ),
    Kind(
        "photos missing from a finished folder of people",
        "test_systems.test_a_photo_that_is_gone_from_a_finished_folder_is_drawn_again",
        "they are drawn again, and no others; `records.jsonl is damaged` if they cannot be",
    ),
    # Models and runs.
    Kind("damaged configs", f"test_fuzz.test_configs[{test_fuzz.CASES}]", huge_config),
    Kind(
        "damaged model folders",
        f"test_fuzz.test_model_folders[{test_fuzz.CASES}] test_checkpoint.test_weights_of_another_type_are_named",
        whole_numbers,
    ),
    Kind(
        "damaged checkpoints: bytes, tensors, metadata",
        f"test_fuzz.test_checkpoints[{test_fuzz.CASES}] test_checkpoint.test_a_damaged_checkpoint_is_one_line",
        damaged_checkpoint,
    ),
    Kind(
        "damaged run folders: config.json, log.jsonl",
        f"test_fuzz.test_run_configs_and_logs[{test_fuzz.CASES}] "
        "test_checkpoint.test_a_damaged_config_of_a_run_is_one_line "
        "test_checkpoint.test_a_log_line_that_a_kill_cut_short_is_forgotten",
        "a damaged line of the log is left out; a damaged config is named",
    ),
    Kind(
        "a run resumed on other pairs, or in another order",
        "test_splits.test_a_run_goes_on_with_the_pairs_it_began_with_and_no_others",
        "`trained on 200 pairs`, `199 pairs`, with their sums",
    ),
    Kind(
        "a run resumed for another length",
        "test_splits.test_a_longer_run_says_what_becomes_of_the_learning_rate",
        "`6 steps instead of 2 move the fall of the learning rate from step 1 to 3`, with both rates",
    ),
    Kind(
        "options that would train nothing",
        "test_splits.test_options_that_would_train_nothing_are_refused",
        lambda folder: TrainConfig(preset="tiny", ema=1.0),
    ),
    # Systems.
    Kind(
        "a worker that is killed",
        "test_systems.test_a_killed_worker_of_a_training_is_one_line "
        "test_people.test_a_worker_that_is_killed_is_said_and_not_waited_for",
        "`was ended from outside`, and how to go on: `--resume`, or the command again",
    ),
    Kind(
        "a parent that is killed",
        "test_systems.test_workers_end_with_their_parent_however_it_ends",
        "its workers end, too, and the folder is free",
    ),
    Kind(
        "no POSIX modules, as on Windows",
        "test_files.test_every_module_and_command_begins_where_posix_modules_are_missing "
        "test_systems.test_windows_locks_a_file_in_the_folder "
        "test_systems.test_windows_has_no_c_library_whose_memory_could_be_kept "
        "test_systems.test_windows_says_how_much_memory_is_in_use",
        "all commands work without them",
    ),
    Kind(
        "no compiler",
        "test_systems.test_a_compiler_that_is_not_there_is_missed_before_the_work "
        "test_systems.test_an_error_of_the_compiler_is_one_line_and_one_of_the_code_is_not",
        "`--compile needs a compiler`, before the work, and `leave --compile out`",
    ),
    Kind(
        "a device that cannot compute",
        "test_systems.test_a_device_on_which_nothing_can_be_computed_is_refused "
        "test_systems.test_a_training_says_at_once_that_its_device_cannot_compute",
        lambda folder: pick_device("meta"),
    ),
    Kind(
        "a console of another encoding",
        "test_systems.test_a_console_of_another_encoding_ends_no_command",
        "what it cannot show is printed as codes",
    ),
    Kind(
        "videos without ffmpeg, or with one that fails",
        "test_animation.test_a_video_is_not_promised_without_ffmpeg_nor_written_over_another "
        "test_animation.test_what_ffmpeg_says_is_one_line_and_nothing_is_left",
        no_ffmpeg,
    ),
    Kind(
        "a file that exists, by way of a folder that does not",
        "test_systems.test_a_file_is_not_replaced_by_way_of_a_folder_that_is_not_there",
        dotdot,
    ),
    # Python.
    Kind(
        "shapes, dtypes, devices and ranges in Python",
        "test_api.test_what_cannot_be_meant_is_one_sentence",
        lambda folder: test_api.REFUSED["UNet: 3 channels"][0](),
    ),
    Kind(
        "sizes with the width first",
        "test_units.test_generate_refuses_keypoints_of_another_frame_and_sizes_of_another_shape",
        lambda folder: test_api.in_photo(size=(176, 256)),
    ),
    Kind(
        "photos as paths, arrays and images; numpy's numbers; negative strides",
        "test_api.test_a_photo_is_taken_as_a_path_an_array_and_an_image "
        "test_api.test_maps_are_drawn_from_arrays_with_negative_strides "
        "test_api.test_numpys_numbers_and_lists_become_plain_in_configs",
        "they are taken",
    ),
    Kind(
        "FID of fewer images than features",
        "test_metrics.test_fid_is_scipys_for_more_and_for_fewer_pictures_than_dimensions "
        "test_metrics.test_the_fid_of_identical_sets_is_0",
        "the exact value",
    ),
]


def named_tests(kind: Kind) -> list[tuple[Callable[..., object], int]]:
    """The tests of a row, and how many cases each has: its parameters, times those that it goes through."""
    found = []
    for text in kind.tests.split():
        module, name, times = re.fullmatch(r"(\w+)\.(\w+)(?:\[(\d+)\])?", text).groups()  # type: ignore[union-attr]
        test = getattr(importlib.import_module(module), name)
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        found.append((test, int(times or 1) * math.prod(len(list(mark.args[1])) for mark in marks)))
    return found


def said(kind: Kind, folder: Path) -> str:
    """The last column: what the product says, in code, or our own words."""
    if isinstance(kind.says, str):
        return kind.says
    try:
        text = kind.says(folder)
    except ValueError as error:
        text = str(error)
    assert isinstance(text, str) and text, kind.kind
    text = " ".join(text.replace(f"{folder}/", "").split()).replace("|", "/").replace("`", "'")
    return f"`{text if len(text) <= LONGEST else text[: text.rindex(' ', 0, LONGEST)] + ' ...'}`"


def row(kind: Kind, folder: Path) -> str:
    return f"| {kind.kind} | {sum(count for _, count in named_tests(kind))} | {said(kind, folder)} |"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_row_of_the_table_is_what_the_product_says(kind: Kind, tmp_path: Path) -> None:
    assert row(kind, tmp_path) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if isinstance(kind.says, str)], ids=lambda kind: kind.kind)
def test_what_is_quoted_is_asked_for_by_a_test(kind: Kind) -> None:
    sources = "".join(inspect.getsource(inspect.unwrap(test)) for test, _ in named_tests(kind))
    sources += "".join(str(mark.args) for test, _ in named_tests(kind) for mark in getattr(test, "pytestmark", []))
    for quoted in re.findall("`([^`]+)`", str(kind.says)):
        assert quoted in sources.replace("\\.", "."), quoted


def test_the_table_has_these_rows_and_no_others() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = page[page.index(HEAD) + len(HEAD) :].split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in rows] == [f"| {kind.kind}" for kind in KINDS]


def write_page() -> None:
    lines = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(kind, Path(folder)))
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(HEAD)
    PAGE.write_text(before + HEAD + "\n".join(lines) + "\n\n" + rest.partition("\n\n")[2], encoding="utf-8")


if __name__ == "__main__":
    write_page()
