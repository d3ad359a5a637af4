"""What the name of a photo must be, so that every command can use it, and whether the photos themselves are whole.

cfld.evaluate names the image of a pair {from}_2_{to}_vis.png, without the endings of both names, and a file that is
being written has a longer name still. File systems allow 255 bytes.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image
from cfld.tools.workers import in_workers

LONGEST = 105  # bytes of a name without its ending: two of them, 11 of the pattern and 30 of a temporary name make 251
SHOWN = 10  # damaged photos that an error names


def check_photo_names(names: Iterable[str], where: str | Path) -> None:
    """Raise UserError unless each name is one of a file, and no path; is short enough for the images of pairs; and
    differs from the others in more than its ending. where: what to say before the error."""
    stems: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if {PurePosixPath(name).name, PureWindowsPath(name).name} != {name} or "\0" in name or name == "..":
            raise UserError(f"{where}: names must be those of files, without folders, found {name[:80]!r}: rename it")
        stem = Path(name).stem
        if (found := len(os.fsencode(stem))) > LONGEST:
            raise UserError(
                f"{where}: names must have at most {LONGEST} bytes before the ending, so that both names of a pair fit "
                f"into that of its image, found {found} in {name[:60]}...: rename it"
            )
        if (other := stems.setdefault(stem, name)) != name:
            raise UserError(
                f"{where}: names must differ in more than their endings, which the images of pairs do not have, found "
                f"{other} and {name}: rename one"
            )


def damage(path: Path) -> str | None:
    """Why a photo cannot be read, if so."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None


def check_photos(paths: Sequence[Path], workers: int = 1) -> None:
    """Open every photo once, in some processes. Raises UserError that names those that are damaged."""
    found = in_workers(damage, paths, workers)
    damaged = sorted(filter(None, tqdm(found, total=len(paths), desc="opening photos", unit="photo")))
    if damaged:
        more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise UserError(f"{len(damaged)} of {len(paths)} photos are damaged: {'; '.join(damaged[:SHOWN])}{more}")
