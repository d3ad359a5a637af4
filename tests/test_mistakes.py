"""What is said of mistakes: on the command line, in files and in Python, in our words and of the one thing that is
wrong."""

import ast
import errno
import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MICRO
from PIL import Image
from references import DATA
from safetensors.torch import save_file
from test_help import MAINS, parsers

import cfld
from cfld.baselines import read_config, to_dict
from cfld.data.deepfashion import read_pairs
from cfld.evaluate.protocol import PairSet, read_picture
from cfld.evaluate.study import is_key
from cfld.people.folder import Plan, finished_records, is_whole
from cfld.photos.crop import fit, fitted, whole
from cfld.photos.keypoints import keypoints_from, read_annotations
from cfld.playground.requests import read_photo
from cfld.tools.cli import Parser, UserError, command, nearest, pick_device
from cfld.tools.files import read_json, write_text
from cfld.tools.pictures import read_image
from cfld.tools.reasons import memory_asked, reason
from cfld.tools.tensors import read_safetensors, read_tensors
from cfld.training.checkpoint import read_learnt
from cfld.training.options import TrainConfig, checked_options
from cfld.training.run_folder import read_run_config

ROOT = Path(__file__).parents[1]
PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
FOREIGN = re.compile(
    r"\[Errno|Traceback|object is not|not supported between|codec can't|Expecting|identify image|deserializ|ufunc|"
    r"NoneType|invalid literal|allow_pickle|unexpected keyword|argument must be|broadcast|Weights only|<class|0x7f"
)

# The command line.

USAGE = [
    ("sample", ["--step", "5"], "unknown option --step; did you mean --steps?"),
    ("sample", ["--sorce", "x", "--pose", "p", "--out", "o.png"], "unknown option --sorce; did you mean --source?"),
    ("sample", ["-out", "o.png"], "unknown option -out; did you mean --out?"),
    ("sample", ["-o", "o.png"], "unknown option -o; did you mean --out?"),
    ("sample", ["--posescale=3"], "unknown option --posescale; did you mean --pose-scale?"),
    ("sample", ["--zzz"], "unknown option --zzz: python -m cfld.sample --help lists them"),
    ("sample", ["--source", "x"], "--pose and --out must be given: python -m cfld.sample --help lists them"),
    ("sample", ["--source"], "--source must be followed by a value"),
    ("sample", ["--guidance-interval", "3"], "--guidance-interval must be followed by 2 values"),
    ("sample", ["--steps", "many"], "--steps must be a whole number, found 'many'"),
    ("sample", ["--pose-scale", "big"], "--pose-scale must be a number, found 'big'"),
    ("sample", ["--pose-scale", "-inf"], "--pose-scale must be followed by a value"),
    ("sample", ["--size", "256"], "--size must be two whole numbers such as 256x176, found '256'"),
    ("sample", ["--sampler", "ddmp"], "--sampler must be ddpm, ddim, dpm++ or unipc, found 'ddmp'; did you mean ddpm?"),
    ("sample", ["--force=yes"], "--force takes no value, found 'yes'"),
    ("train", ["--resum"], "unknown option --resum; did you mean --resume?"),
    ("train", ["--preset", "sd5"], "--preset must be sd15 or tiny, found 'sd5'; did you mean sd15?"),
    ("edit", [], "a command must be given: edit, interpolate, sequence or attention"),
    ("edit", ["seqence"], "unknown command 'seqence'; did you mean sequence?"),
    ("edit", ["edit", "--feathr", "3"], "unknown option --feathr; did you mean --feather?"),
    ("evaluate", ["--out", "x"], "one of --model, --pred, --vae and --ground-truth must be given"),
    ("evaluate", ["--out", "x", "--pred", "a", "--vae", "b"], "--vae must be given without --pred"),
    ("evaluate", ["studi", "build"], "unknown command 'studi'; did you mean study?"),
    ("evaluate.study", ["scor"], "unknown command 'scor'; did you mean score?"),
    ("evaluate.figure", ["--methd", "x"], "unknown option --methd; did you mean --method?"),
    ("convert", ["exprt"], "unknown command 'exprt'; did you mean export?"),
    ("convert", ["export", "--to", "kohia", "a", "b"], "found 'kohia'; did you mean kohya?"),
    ("data", ["prepare"], "ROOT must be given: python -m cfld.data prepare --help lists them"),
    ("data", ["pairs", "x", "--layout", "coc"], "found 'coc'; did you mean coco?"),
    ("people", ["x", "--identites", "3"], "unknown option --identites; did you mean --identities?"),
    ("photos", ["a.jpg", "--out", "x.png", "--persn", "1"], "unknown option --persn; did you mean --person?"),
    ("playground", ["--prot", "5"], "unknown option --prot; did you mean --port?"),
    ("tools.plot", [], "RUN must be given"),
]  # fmt: skip


def main_of(name: str) -> Callable:
    return next(main for module, main in MAINS.items() if module.removesuffix(".__main__") == f"cfld.{name}")


@pytest.mark.parametrize(("name", "argv", "said"), USAGE)
def test_a_mistake_on_the_command_line_is_one_line_with_the_nearest_name(
    name: str, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of(name)(argv) == 2
    shown = capsys.readouterr()
    assert not shown.out and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert said in shown.err and "usage:" not in shown.err, shown.err


def test_what_belongs_to_no_option_is_named(fails) -> None:
    argv = ["--source", "x", "--pose", "p", "--out", "o.png", "--fast", "a.jpg"]
    fails(main_of("sample"), *argv, words=["'a.jpg' belongs to no option"])


@pytest.mark.parametrize("name", MAINS)
def test_every_command_and_subcommand_parses_by_our_parser(name: str) -> None:
    assert all(isinstance(parser, Parser) for parser in parsers(MAINS[name]))


def test_only_a_name_that_is_near_is_asked_for() -> None:
    assert nearest("--zzz", ["--steps", "--stage"]) == ""
    assert nearest("--st", ["--steps", "--stage"]) in ("; did you mean --steps?", "; did you mean --stage?")
    assert nearest("--res", ["--resume", "--seed"]) == "; did you mean --resume?"


def test_a_text_of_argparse_that_is_not_known_is_said_as_it_is() -> None:
    parser = Parser("p")
    assert parser.in_our_words("something new") == "something new"
    assert parser.in_our_words("argument --x/-x: of a new kind") == "--x or -x of a new kind"


# Other libraries' errors.


def ours(error: UserError) -> None:
    """Fail if the text of another library's error is in a message of ours."""
    text = str(error)
    assert not FOREIGN.search(text), text
    other: BaseException | None = error.__context__
    while other is not None:
        if not isinstance(other, UserError | KeyError) and not (isinstance(other, OSError) and other.errno):
            assert len(str(other)) < 4 or str(other) not in text or raised_by_us(other), (text, repr(other))
        other = other.__context__


def raised_by_us(error: BaseException) -> bool:
    """Whether the last line of an error's traceback is a raise in cfld."""
    frame, line = None, 0
    traceback = error.__traceback__
    while traceback is not None:
        frame, line, traceback = traceback.tb_frame, traceback.tb_lineno, traceback.tb_next
    assert frame is not None
    path = Path(frame.f_code.co_filename)
    if ROOT / "cfld" not in path.parents:
        return False
    raises = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
    return any(node.lineno <= line <= (node.end_lineno or 0) for node in raises)


def object_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1), "y": Path("x")}, buffer)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_tensor(path: Path) -> bytes:
    save_file({"x": torch.zeros(1000)}, path)
    return path.read_bytes()


JSON_TEXTS = {
    "cut off": b'{"a": [1, 2',
    "deep": b"[" * 100_000,
    "digits": b"9" * 5000,
    "empty": b"",
    "utf-16": "{}".encode("utf-16"),
    "another": b"5",
    "of an object": b'{"x": 3}',
}
KINDS: dict[str, tuple[Callable[[Path], object], dict[str, bytes]]] = {
    "photo.jpg": (
        read_image,
        {"text": b"hello", "cut off": PHOTO.read_bytes()[:700], "empty": b"", "png": b"\x89PNG\r\n\x1a\n" + bytes(50)},
    ),
    "made.png": (lambda path: read_picture(path, (256, 176)), {"text": b"x", "cut off": PHOTO.read_bytes()[:700]}),
    "drop.jpg": (lambda path: read_photo(path.read_bytes()), {"text": b"x", "cut off": PHOTO.read_bytes()[:700]}),
    "value.json": (
        read_json,
        {name: text for name, text in JSON_TEXTS.items() if name not in ("another", "of an object")},
    ),
    "config.json": (read_config, JSON_TEXTS | {"types": json.dumps(to_dict(MICRO) | {"unet": 5}).encode()}),
    "run.json": (read_run_config, JSON_TEXTS | {"model": b'{"model": {"unet": {"channels": "x"}}}'}),
    "pose.json": (
        cfld.read_pose,
        JSON_TEXTS
        | {
            "lacks": b'{"annotations": [{"keypoints": [1, 2, 3]}]}',
            "kinds": b'{"people": [{"pose_keypoints_2d": [[1]]}]}',
            "number": b'{"annotations": 5}',
            "list": b'[{"instances": 5}]',
        },
    ),
    "pose.npy": (
        cfld.read_pose,
        {
            "text": b"hello",
            "objects": npy(np.array([{}])),
            "cut off": npy(np.zeros((18, 3)))[:100],
            "words": npy(np.array("x")),
        },
    ),
    "pose.npz": (cfld.read_pose, {"text": b"hello", "zip": b"PK\x03\x04" + bytes(30)}),
    "pose.txt": (cfld.read_pose, {"words": b"a b\n", "bytes": b"\xff\xfe\xff"}),
    "table.csv": (read_annotations, {"bytes": b"\xff\xfe\xff", "lists": b"name:keypoints_y:keypoints_x\na: [1: [2\n"}),
    "pairs.csv": (read_pairs, {"bytes": b"from,to\n\xff\xfe"}),
    "x.safetensors": (
        read_safetensors,
        {"text": b"hello", "empty": b"", "long": b"\xff" * 50, "header": b"\x02" + bytes(7) + b"{x"},
    ),
    "y.safetensors": (read_learnt, {"text": b"hello"}),
    "x.bin": (
        read_tensors,
        {"text": b"hello", "object": object_pickle(), "pickle": pickle.dumps({1: Path("x")}), "empty": b""},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_in_our_words(name: str, tmp_path: Path) -> None:
    read, contents = KINDS[name]
    path = tmp_path / name
    if path.suffix == ".safetensors":
        contents = contents | {"cut off": with_tensor(path)[:-100]}
    for kind, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(path)
        ours(caught.value)
        assert name.startswith("drop") or name in str(caught.value), kind
    if not name.startswith("drop"):
        path.unlink()
        with pytest.raises(UserError, match=r"no such|is missing") as caught:
            read(path)
        ours(caught.value)


def test_an_object_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(object_pickle())
    with pytest.raises(UserError, match=r"with an object of pathlib\.\w+, which is no tensor"):
        read_tensors(tmp_path / "x.bin")


def test_a_damaged_mask_and_records_are_refused_in_our_words(fashion: Path, tmp_path: Path) -> None:
    cases = PairSet(fashion, (256, 176))
    cases.masks = tmp_path
    (tmp_path / f"{Path(cases.lists.photos[0]).stem}.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"the mask of .* is not readable \(of no known format\)") as caught:
        cases.label_map(cases.lists.photos[0])
    ours(caught.value)
    for text in (b"5\n", b"[\n", b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"):
        (tmp_path / "records.jsonl").write_bytes(text)
        with pytest.raises(UserError, match=r"records\.jsonl") as caught:
            finished_records(tmp_path)
        ours(caught.value)


def test_records_without_joints_and_keys_of_no_study_are_refused_in_our_words(tmp_path: Path, fails) -> None:
    plan = Plan(1, 2, 0, 0.0, 64, 1)
    good = {"name": "a.jpg", "y": [1] * 18, "x": [1] * 18}
    for bad in ({"name": "a.jpg"}, good | {"y": "x"}, good | {"x": [1]}, good | {"x": [None] * 17 + ["a"]}, 5):
        with pytest.raises(UserError, match="damaged in the record of seed 0") as caught:
            is_whole(tmp_path, plan, {"seed": 0, "photos": [good, bad]})
        ours(caught.value)
    assert not is_whole(tmp_path, plan, {"seed": 0, "photos": [good, good]})
    key = {"study": "x", "methods": ["a"], "judged": [{"method": "a", "answers": ["real"]}], "compared": []}
    assert is_key(key)
    for change in (
        {"judged": []},
        {"judged": 5},
        {"judged": [{}]},
        {"compared": [{"methods": ["b"]}]},
        {"methods": [[]]},
    ):
        assert not is_key(key | change) and not is_key([key])
        (tmp_path / "k.json").write_text(json.dumps(key | change))
        fails(main_of("evaluate.study"), "score", "a.json", "--key", tmp_path / "k.json", "--out", tmp_path / "o.json",
              words=["k.json: must be the key that build wrote"])  # fmt: skip


def test_damaged_options_of_a_run_are_refused_in_our_words(tmp_path: Path) -> None:
    good = {name: getattr(TrainConfig(), name) for name in TrainConfig.__dataclass_fields__}
    assert checked_options(good | {"lr": 1}, tmp_path) == TrainConfig(lr=1)
    for change in ({"steps": "x"}, {"lr": [1]}, {"compile": 3}, {"seed": True}, {"nothing": 5}, {"out": None}):
        with pytest.raises(UserError, match=f"must hold the options of a run, found .*{next(iter(change))}") as caught:
            checked_options(good | change, tmp_path)
        ours(caught.value)


def test_errors_of_the_system_are_one_sentence(tmp_path: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    @command
    def main(argv: list[str]) -> None:
        (tmp_path / "none" / "x").read_text()

    said = fails(main, words=[f"{tmp_path}/none/x cannot be used: No such file or directory"])
    assert "Errno" not in said

    def full(self: Path, *args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"x.txt cannot be written \(No space left on device\): make room"):
        write_text(tmp_path / "x.txt", "text")


def test_a_lack_of_memory_says_how_much(fails) -> None:
    for error, amount in (
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."),
            " for 20.00 MiB more",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 640 bytes."),
            " for 640 bytes more",
        ),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1,)"), " for 7.45 GiB more"),
        (MemoryError(), ""),
    ):
        assert memory_asked(error) == amount

        @command
        def main(argv: list[str], error: Exception = error) -> None:
            raise error

        said = fails(main, words=[f"not enough memory{amount}: use a smaller --batch"])
        assert "GPU 0" not in said and "Allocator" not in said and "array" not in said


def test_a_command_passes_over_what_pillow_warns_of_and_nothing_else() -> None:
    @command
    def main(argv: list[str]) -> None:
        for module in ("PIL.TiffImagePlugin", "torch.nn"):
            warnings.warn_explicit(f"of {module}", UserWarning, "f.py", 1, module)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main([]) == 0
    assert [str(warning.message) for warning in seen] == ["of torch.nn"]


def test_a_device_that_cannot_be_used_is_refused_with_those_that_can() -> None:
    for name in ("cuda:77", "nowhere", "meta"):
        with pytest.raises(UserError, match=f"--device {name} cannot be used here, where torch has .*cpu") as caught:
            pick_device(name)
        ours(caught.value)


def test_every_kind_of_error_has_a_reason_in_our_words() -> None:
    for error in (
        json.JSONDecodeError("Expecting value", "x", 0),
        RecursionError("maximum recursion depth exceeded"),
        Image.DecompressionBombError("Image size"),
        TimeoutError("timed out"),
        ValueError("odd"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        EOFError("Ran out of input, EOF"),
    ):
        assert str(error) not in reason(error) and len(reason(error)) > 5


OUR_VALUE_ERRORS = {  # functions that paste the text of a ValueError, which only our own configs and networks raise
    "read_config",
    "read_run_config",
    "load_student",
    "refuse_measured",
    "check",
    "read_facts",
}
OUR_ERRORS = {"UserError", "Nobody", "Interrupted", "WriteError", "Refused", "argparse.ArgumentTypeError"}
COMPARED = {"lost_worker", "join"}  # which look for words in a text and paste none of it


def pasted(tree: ast.AST) -> list[tuple[str, int]]:
    """Functions that put the text of a caught error into a string, and where, unless the error is one of ours."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for handler in ast.walk(function):
            if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
                continue
            kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
            if {ast.unparse(kind) for kind in kinds} <= OUR_ERRORS:
                continue
            for node in ast.walk(handler):
                inside = node.value if isinstance(node, ast.FormattedValue) else None
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("str", "repr"):
                    inside = node.args[0]
                if isinstance(inside, ast.Name) and inside.id == handler.name:
                    found.append((function.name, node.lineno))
    return found


def test_pasted_texts_are_seen() -> None:
    source = "def f():\n try: g()\n except (KeyError, OSError) as e:\n  raise UserError(f'{e!r}')\n"
    assert [name for name, _ in pasted(ast.parse(source))] == ["f"]
    assert pasted(ast.parse(source.replace("{e!r}", "{str(e)[:9]}"))) and not pasted(
        ast.parse(source.replace("{e!r}", "{e.errno}"))
    )
    assert not pasted(ast.parse(source.replace("(KeyError, OSError)", "UserError")))


@pytest.mark.parametrize("path", sorted((ROOT / "cfld").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_handler_pastes_the_text_of_another_librarys_error(path: Path) -> None:
    found = [
        f"{name}, line {line}"
        for name, line in pasted(ast.parse(path.read_text()))
        if name not in OUR_VALUE_ERRORS | COMPARED
    ]
    assert not found, "say what must hold in our words: cfld.tools.reasons.reason"


# Python.

POINTS = np.c_[np.linspace(60, 110, 18), np.linspace(20, 230, 18), np.ones(18)]
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "a size of three": (lambda: keypoints_from(POINTS, pose_size=(256, 176, 3)), "pose_size must be"),
    "a negative size": (lambda: keypoints_from(POINTS, pose_size=(-1, 5)), "pose_size must be"),
    "a size that is no number": (lambda: keypoints_from(POINTS, pose_size=(float("nan"), 5)), "pose_size must be"),
    "half a person": (lambda: keypoints_from(POINTS, person=0.5), "person must be a whole number.*0.5"),
    "a confidence as text": (lambda: keypoints_from(POINTS, min_confidence="0.5"), "min_confidence must be a number"),
    "a list as layout": (lambda: keypoints_from(POINTS, layout=["coco"]), "layout must be one of"),
    "a name that no file has": (lambda: cfld.read_pose("a\0.json"), "no such file"),
    "a folder of a number": (lambda: cfld.load(5), "folder must be the path of a model folder, or None, found 5"),
    "an image of none": (lambda: read_image(None), "must be named by its path, found None"),
    "a photo's size as text": (lambda: fit("256x176"), r"size must be the photo's \(height, width\)"),
    "a photo of nothing": (lambda: fit((0, 0)), r"size must be the photo's \(height, width\)"),
    "a crop of text": (lambda: whole((256, 176)).cut("x"), "must be a PIL image, found str 'x'"),
    "a paste of text": (
        lambda: whole((256, 176)).paste(Image.new("RGB", (176, 256)), "x"),
        "must be a PIL image, found str 'x'",
    ),
    "a soft edge of text": (
        lambda: whole((256, 176)).paste(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), feather="x"),
        "feather must be a number of pixels of at least 0, found 'x'",
    ),
    "a frame of an array": (lambda: fitted(np.zeros((4, 4, 3), np.uint8)), "must be a PIL image, found ndarray"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_arguments_of_another_kind_are_refused_in_our_words(kind: str) -> None:
    call, words = CALLS[kind]
    with pytest.raises(UserError, match=words) as caught:
        call()
    ours(caught.value)


def test_what_fits_is_taken_as_before() -> None:
    expected = keypoints_from(POINTS, (256, 176), layout="openpose")
    for size in ([256, 176], (256.0, 176.0), np.array([256, 176]), (np.int64(256), np.float32(176))):
        assert np.array_equal(keypoints_from(POINTS, size, layout="openpose"), expected)
    assert np.array_equal(keypoints_from(POINTS, (256, 176), np.int64(0), np.float32(0), "openpose"), expected)


# The one option that is wrong.


def test_a_message_names_the_one_option_that_is_wrong(fashion: Path, micro_folder: Path, tmp_path: Path, fails) -> None:
    sample, evaluate, figure = main_of("sample"), main_of("evaluate"), main_of("evaluate.figure")
    base = ["--source", PHOTO, "--pose", "p.json", "--out", tmp_path / "o.png"]
    data = ["--ground-truth", "--out", tmp_path / "out"]
    drawing = ["--data", fashion, "--method", "empty backdrop", "--out", tmp_path / "f.png"]
    made = ["--model", micro_folder, "--data", fashion, "--out", tmp_path / "made"]
    for main, argv, word, others in (
        (sample, [*base, "--turbo", "--fast"], "--turbo must be given without --fast", ["--sampler"]),
        (sample, [*base, "--turbo", "--sampler", "ddim"], "--turbo must be given without --sampler", ["--fast"]),
        (sample, [*base, "--source-person", 1], "--source-person is of the source's pose", ["--source-pose-size"]),
        (sample, [*base, "--source-pose-size", "9x9"], "--source-pose-size is of", ["--source-person"]),
        (evaluate, [*data, "--data", fashion, "--batch", 0], "--batch must be 1 or more, found 0", ["--seed"]),
        (evaluate, [*data, "--data", fashion, "--seed", -1], "--seed must be 0 or more, found -1", ["--batch"]),
        (evaluate, data, "--data must be given", ["--truth", "--pred"]),
        (evaluate, [*data, "--truth", fashion], "--truth must be given with --pred", ["--limit"]),
        (
            evaluate,
            ["--pred", "a", "--truth", "b", "--limit", 3, "--out", "x"],
            "--truth must be given without --limit",
            ["--data"],
        ),
        (evaluate, [*made, "--pose-scale", "nan"], "--pose-scale must be a number within", ["--appearance-scale"]),
        (evaluate, [*made, "--steps", 5000], "--steps must be within 1 .. 999, found 5000", ["--sampler"]),
        (figure, [*drawing, "--first", 0], "--first must be 1 or more, found 0", ["--pairs"]),
        (figure, [*drawing, "--pairs", 0, 999], "found 999", ["--first"]),
    ):
        said = fails(main, *argv, words=[word])
        assert not [other for other in others if other in said], said


def test_a_pose_that_is_too_uncertain_is_blamed_on_what_was_asked() -> None:
    doubtful = POINTS * [1, 1, 0.2]
    for content, how, word, others in (
        (doubtful, {"min_confidence": 0.5}, "give a lower --min-confidence", ["--person", "--pose-size"]),
        ([doubtful, POINTS], {"min_confidence": 0.5}, "a lower --min-confidence or another --person", ["--pose-size"]),
        (POINTS * [1, 1, 0], {}, "find the joints again", ["--min-confidence", "--person", "--pose-size"]),
    ):
        with pytest.raises(UserError, match=word) as caught:
            keypoints_from(content, (256, 176), **how)
        assert not [other for other in others if other in str(caught.value)]
