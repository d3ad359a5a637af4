"""SHA256SUMS: the checksums of the files in a folder, in the format of sha256sum.

    c1a5...e9  model.safetensors

A file that is listed beside itself must be the one that was listed; sha256sum -c SHA256SUMS checks a whole folder.
"""

import re
from pathlib import Path

from cfld.tools.cli import UserError
from cfld.tools.files import read_text, sha256, write_lines

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(.+)")


def read_sums(folder: Path) -> dict[str, str]:
    """The sums of a folder's SHA256SUMS by file name; none if there is no such list. Raises UserError."""
    path = folder / NAME
    sums = {}
    for number, line in enumerate(read_text(path).splitlines() if path.is_file() else [], start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise UserError(f"{path}, line {number}: must be a SHA-256 and a file name, found {line[:80]!r}: remove it")
        sums[match[2]] = match[1].lower()
    return sums


def recorded_sum(path: str | Path) -> str | None:
    """The sum that the SHA256SUMS beside a file has for it, if any."""
    return read_sums(Path(path).parent).get(Path(path).name)


def record_sum(path: str | Path, digest: str) -> None:
    """Put the sum of a file into the SHA256SUMS beside it, in place of an earlier one."""
    path = Path(path)
    sums = read_sums(path.parent) | {path.name: digest}
    write_lines(path.with_name(NAME), [f"{sums[name]}  {name}" for name in sorted(sums)])


def checked_sum(path: str | Path) -> str:
    """The SHA-256 of a file. Raises UserError if the SHA256SUMS beside it lists another one."""
    found, recorded = sha256(path), recorded_sum(path)
    if recorded not in (None, found):
        raise UserError(
            f"{path} is another file than {Path(path).with_name(NAME)} lists: its SHA-256 is {found}, expected "
            f"{recorded}; fetch it again, or remove its line to use this one"
        )
    return found


def check_sums(*paths: str | Path | None) -> None:
    """Read each of these files that a SHA256SUMS beside it lists, once. Raises UserError if one is another file."""
    for path in dict.fromkeys(str(path) for path in paths if path is not None):
        if Path(path).is_file() and recorded_sum(path):
            checked_sum(path)
