"""For every command: whole files or none, nothing overwritten unasked, errors of one line, devices."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cfld.tools.cli import UserError, WriteError


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
