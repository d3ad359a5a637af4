"""For every command: whole files or none, nothing overwritten unasked, errors of one line, devices."""

import argparse
import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # what pictures may be called that are written
os.umask(UMASK := os.umask(0))  # to read it is to set it: once, before there are threads
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UserError(ValueError):
    """A mistake that the user can mend. Its text says what must hold, what was found and how to fix it, in one line."""


class WriteError(UserError):
    """What could not be written: a full disk, or a folder that is not the user's."""


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Make main(argv) a command: a UserError or a full disk becomes one line on standard error and exit code 2."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            main(argv)
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except UnicodeEncodeError as error:
            text = f"names of files must be UTF-8, found {error.object[-80:]!r}: rename it"
        except (UserError, OSError) as error:
            text = re.split(r"(?:User|Write)Error: ", str(error))[-1]  # a worker process's comes with its traceback
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            text = (
                f"not enough memory ({str(error)[:200]}): take less at a time, by --batch or fewer pictures, and in "
                "training by --accumulate and --checkpointing all"
            )
        print("error: " + " ".join(text.split()), file=sys.stderr)
        return 2

    return run


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that the machine or the GPU has no more memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a description as they are written and shows the defaults that mean something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", ()):
            return action.help
        return super()._get_help_string(action)


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for python -m module, described by the module's docstring without the letters of its shapes."""
    description = (doc or "").partition("\nLetters in shapes")[0]
    return argparse.ArgumentParser(f"python -m {module}", description=description, formatter_class=HelpFormatter)


def parse_size(text: str) -> tuple[int, int]:
    """ "256x176" -> (256, 176), for argparse."""
    try:
        first, second = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two whole numbers such as 256x176, found {text!r}") from None
    if not (0 < first <= 8192 and 0 < second <= 8192):
        raise argparse.ArgumentTypeError(f"each side must be within 1 .. 8192, found {text!r}")
    return first, second


def parse_seed(text: str) -> int:
    """A seed that every generator takes, for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 and below 2^63, found {text!r}")
    return int(text)


def pick_device(name: str | None) -> torch.device:
    """The named device, or the best there is. Raises UserError if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def keep_freed_memory() -> None:
    """Let glibc keep for the next step what a step has freed. By itself it gives large blocks back to the kernel, which
    clears every page that it hands out again: a tenth of a full-size step on two cores (docs/train_step.md). Does
    nothing on other systems."""
    trim_threshold, mmap_max, never, none = -1, -4, -1, 0  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, never)
        library.mallopt(mmap_max, none)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise UserError that names the path if the block cannot write: on a full disk, for one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path} cannot be written ({error}): make room, or choose another folder") from None


@contextlib.contextmanager
def atomic(path: str | Path, replace_folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside the target for a file or folder; rename it to the target if the block succeeds,
    remove it if not. A file at the target is replaced in one step; a folder at the target is an error at once, unless
    replace_folder."""
    path = Path(path)
    if path.is_dir() and not replace_folder:
        raise UserError(f"{path} already exists: choose another name or remove it first")
    unique = f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"  # among machines and threads as well
    temporary = path.with_name(f"{unique}.tmp{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_file():
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            if path.is_dir():
                aside = path.with_name(f"{unique}.old")
                os.replace(path, aside)
                os.replace(temporary, path)
                shutil.rmtree(aside)
            else:
                os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # of a folder that could not be made
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def leftovers(folder: Path) -> list[Path]:
    """What atomic(), or safetensors within it (.tmp and six letters), has left in a folder by being killed."""
    pattern = re.compile(r"\..+\.\d+(\.[0-9a-f]{8})?\.(old|tmp(\.\w+)?)|\.tmp\w{6}")
    return [path for path in folder.glob(".*") if pattern.fullmatch(path.name)]


def contents(folder: Path) -> set[Path]:
    """What is in a folder, but for leftovers."""
    return set(folder.iterdir()) - set(leftovers(folder))


def remove_leftovers(folder: Path) -> None:
    """Remove them."""
    for path in leftovers(folder):
        remove(path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and keep other processes from the same work in it until this one is done or gone.
    Raises UserError if another has it. Does nothing on disks and systems that know no locks."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl

        place = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        for patience in reversed(range(20)):  # workers of a killed process live on for some seconds
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise UserError(f"{folder} is in use by another process: wait for its end, or stop it") from None
                time.sleep(0.5)
            except OSError:
                break
        yield
    finally:
        os.close(place)


def check_manifest(manifest: Path, asked: dict[str, Any], advice: str) -> None:
    """Raise UserError if the folder that a manifest describes was made with something else than asked."""
    found = read_object(manifest)
    if changed := [key for key, value in asked.items() if found.get(key) != value]:
        was, wanted = (", ".join(f"{key} {values.get(key)}" for key in changed) for values in (found, asked))
        raise UserError(f"{manifest.parent} was made with {was}, asked was {wanted}: {advice}")


def open_folder(manifest: Path, asked: dict[str, Any], advice: str) -> None:
    """Begin a folder that one run after the other may fill, or check that it was begun with the same, and no more."""
    folder = manifest.parent
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} must be a folder, found a file: choose another place")
    if manifest.is_file():
        check_manifest(manifest, dict.fromkeys(read_object(manifest)) | asked, advice)
    elif folder.is_dir() and contents(folder):
        raise UserError(f"{folder} must be empty or made by this command, found other files: choose another place")
    else:
        write_json(manifest, asked)


def link(source: Path, target: Path) -> None:
    """Make target the same file as source where the disk can, a copy where it cannot."""
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def refuse_overwrite(path: str | Path, force: bool) -> None:
    """Raise UserError if something stands at the path and the user has not said --force, or if nothing can be written
    there: before the work, not after it."""
    if Path(path).exists() and not force:
        raise UserError(f"{path} already exists: choose another name or add --force to replace it")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{path} cannot be written: {folder} is no folder that you may write in; choose another")


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be text in UTF-8 ({error})") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of thousands of digits
        raise UserError(f"{path}: not JSON ({error})") from None


def read_object(path: str | Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file that must be an object with these keys."""
    content = read_json(path)
    if not isinstance(content, dict) or (missing := [key for key in keys if key not in content]):
        found = f"no {missing[0]!r}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} must be a JSON object with {', '.join(keys) or 'names'}, found {found}")
    return content


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write a text file of these lines, atomically."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: str | Path) -> str:
    """The sum of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A sha256 of tensors: of the name and bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_image(path: str | Path, upright: bool = False, backdrop: str = "white") -> Image.Image:
    """A picture of any format that pillow reads, as RGB; upright: turned as its camera says; backdrop: what shows where
    it is transparent."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(turned_upright(image) if upright else image, backdrop)
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error}): replace the file") from None


def orientation(image: Image.Image) -> int:
    """How a camera says that it was held, 1 for upright; also if what it says cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # pillow raises whatever a damaged tag leads to
        return 1


def turned_upright(image: Image.Image) -> Image.Image:
    """A picture turned as its camera says, if what the camera says can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def to_rgb(image: Image.Image, backdrop: str = "white") -> Image.Image:
    """A picture as RGB: on a backdrop where it is transparent, and with 16 bits a pixel reduced to 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    return image.convert("RGB")


def check_picture_name(path: str | Path) -> None:
    """Raise UserError unless the name ends as a picture's."""
    if Path(path).suffix.lower() not in PICTURES:
        raise UserError(f"{path}: a picture's name must end in {' or '.join(PICTURES)}, found {Path(path).suffix!r}")


def save_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """Write a picture atomically; the format follows the name. options: what pillow takes for it."""
    check_picture_name(path)
    with atomic(path) as temporary:
        image.save(temporary, **options)


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def read_safetensors(path: str | Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file on the CPU, floating-point ones in the dtype if one is given, and its metadata.

    Each is read and converted in turn: a mapped file's pages would count as memory, 4 GB beside the model's own.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as checked:  # the library checks header, types, offsets and length
            metadata = checked.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): download or copy it again") from None
    tensors = {}
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{path}: {name} has type {entry['dtype']}, which must be one of {', '.join(DTYPES)}")
            begin, end = entry["data_offsets"]
            buffer = bytearray(end - begin)
            file.seek(8 + header_size + begin)
            file.readinto(buffer)
            tensor = torch.frombuffer(buffer, dtype=DTYPES[entry["dtype"]]) if buffer else torch.empty(0)
            tensor = tensor.reshape(entry["shape"])
            tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors, metadata


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds tensors only (weights_only=True), on the CPU."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        mappable = zipfile.is_zipfile(path)  # not what torch wrote before 1.6
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # torch.load raises whatever the unpickler meets first
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path}: not a whole checkpoint of plain tensors ({reason}): copy it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: a checkpoint must hold tensors by name, found {type(content).__name__}")
    return content


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic(path) as temporary:
        save_file({name: x.detach().contiguous().cpu() for name, x in tensors.items()}, temporary, metadata)
        temporary.chmod(0o666 & ~UMASK)  # as any file: the library lets nobody else read it
