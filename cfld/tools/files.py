"""Shared by all commands: atomic writes, overwrite protection, locks, manifests, text and JSON."""

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
    """Turn what the block raises when it cannot write, on a full disk say, into a WriteError that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path} cannot be written ({error}): make room, or choose another folder") from None


@contextlib.contextmanager
def atomic(path: str | Path, replace_folder: bool = False) -> Iterator[Path]:
    """Give a temporary path next to the target for a file or folder; rename it to the target if the block succeeds,
    remove it if not.

    A file at the target is replaced in one step. A folder at the target is an error at once, unless replace_folder:
    then it is moved aside before the new one takes its place. A kill between these two steps leaves it aside, from
    where remove_leftovers puts it back. Raises UserError.
    """
    path = settled(path)
    if path.is_dir() and not replace_folder:
        raise UserError(f"{path} already exists: choose another name or remove it first")
    unique = f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"  # among machines and threads as well
    temporary, aside = path.with_name(f"{unique}.tmp{path.suffix}"), path.with_name(f"{unique}.old")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_file():
                with open(temporary, "r+b") as file:  # Windows writes out only what is open for writing
                    os.fsync(file.fileno())
            if path.is_dir():
                os.replace(path, aside)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # of a folder that could not be made
            put_back(aside, path)
            remove(temporary)


def settled(path: str | Path) -> Path:
    """The path without .. in it: NEW/../a.png is a.png also while there is no folder NEW."""
    path = Path(path)
    return path.parent.resolve() / path.name if ".." in path.parts else path


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_back(aside: Path, path: Path) -> None:
    """Move a folder back that was moved aside, if nothing has taken its place; else remove it."""
    if aside.exists() and not path.exists():
        os.replace(aside, path)
    else:
        remove(aside)


LOCK = ".lock"  # of alone_in, on Windows
LEFTOVER = re.compile(r"\.(?P<name>.+?)\.\d{1,7}(\.[0-9a-f]{8})?\.(?P<kind>old|tmp(\.\w+)?)|\.tmp\w{6}")


def leftovers(folder: Path) -> dict[Path, Path | None]:
    """What a killed atomic(), or safetensors within it (.tmp and six letters), has left in a folder: each path, and for
    a folder that was moved aside its former place, else None."""
    found = {path: LEFTOVER.fullmatch(path.name) for path in folder.glob(".*")}
    return {path: folder / m["name"] if m["kind"] == "old" else None for path, m in found.items() if m}


def contents(folder: Path) -> set[Path]:
    """What is in a folder, without leftovers and the lock."""
    return set(folder.iterdir()) - leftovers(folder).keys() - {folder / LOCK}


def remove_leftovers(folder: Path) -> None:
    """Remove what killed commands have left in a folder, and put back a folder that one of them was replacing."""
    for path, place in leftovers(folder).items():
        if place is not None:
            put_back(path, place)
        else:
            remove(path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and lock it until the block ends or the process does.

    Raises UserError if another process keeps it locked for ten seconds. Does nothing more where there are no locks, as
    on some network disks.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        for patience in reversed(range(20)):  # workers of a killed process may live on for some seconds
            try:
                closing.callback(os.close, lock(folder))
                break
            except BlockingIOError:
                if not patience:
                    raise UserError(f"{folder} is in use by another process: wait for its end, or stop it") from None
                time.sleep(0.5)
            except OSError:
                break
        yield


def lock(folder: Path) -> int:
    """Lock a folder -> a descriptor that holds the lock until it is closed; on Windows, which cannot open folders, that
    of a file in it. Raises BlockingIOError if it is locked, another OSError where there are no locks."""
    try:
        import fcntl
    except ImportError:
        try:
            import msvcrt
        except ImportError:
            raise OSError("no locks") from None

        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            os.close(descriptor)
            raise BlockingIOError(error.errno, "locked") from None
        return descriptor
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_manifest(manifest: Path, asked: dict[str, Any], advice: str) -> None:
    """Raise UserError if a folder was made with other settings than asked, by the manifest in it."""
    found = read_object(manifest)
    if changed := [key for key, value in asked.items() if found.get(key) != value]:
        was, wanted = (", ".join(f"{key} {values.get(key)}" for key in changed) for values in (found, asked))
        raise UserError(f"{manifest.parent} was made with {was}, asked was {wanted}: {advice}")


def open_folder(manifest: Path, asked: dict[str, Any], advice: str) -> None:
    """Begin a folder that may be filled in several runs: write its manifest, or check that it says just what is asked.
    Raises UserError."""
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
    """Make target a hard link to source where the disk can, a copy where it cannot."""
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def refuse_overwrite(path: str | Path, force: bool) -> None:
    """Raise UserError before the work, not after it, if something is at the path and the user has not given --force, or
    if nothing can be written there."""
    place = settled(path)
    if place.exists() and not force:
        raise UserError(f"{path} already exists: choose another name or add --force to replace it")
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{path} cannot be written: {folder} is no folder that you may write in; choose another")


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, without its byte order mark. Raises UserError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be text in UTF-8 ({error})") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UserError."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number of thousands of digits
        raise UserError(f"{path}: not JSON ({error})") from None


def read_object(path: str | Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file. Raises UserError unless it is an object with these keys."""
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
    """Write a text file in UTF-8, one item per line, atomically."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
