"""Poses in order, as of a video's frames: a file each, or several in one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfld.photos.crop import PHOTO_SUFFIXES
from cfld.photos.formats import Nobody
from cfld.photos.keypoints import POSE_SUFFIXES, Joints, one_each, read_frames, read_joints, split_part
from cfld.tools.cli import UserError

# Of files in a folder of poses. Text beside files of joints, and photos beside either, are no poses.
KINDS = (tuple(suffix for suffix in POSE_SUFFIXES if suffix != ".txt"), (".txt",), PHOTO_SUFFIXES)


def in_order(path: Path) -> list[str | int]:
    """The key that sorts files by name, 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def pose_files(texts: Sequence[str]) -> list[str]:
    """Values of --pose, with each folder replaced by the files of the first of KINDS in it, sorted by name, and each
    file of several images by a FILE#NAME for each. Hidden files are passed over. The people of a file are taken as
    frames if it may mean that and is the only one, which a line says. Raises UserError."""
    files: list[str] = []
    for text in texts:
        if not Path(text).is_dir():
            files.append(text)
            continue
        inside = sorted((p for p in Path(text).iterdir() if not p.name.startswith(".")), key=in_order)
        by_kind = ([p for p in inside if p.suffix.lower() in kind] for kind in KINDS)
        found = next(filter(None, by_kind), None)
        if not found:
            raise UserError(
                f"--pose {text}: the folder must hold files of joints ({', '.join(POSE_SUFFIXES)}) or images, and "
                "holds none"
            )
        files += map(str, found)
    return [part for file in files for part in parts_of(file, alone=files == list(texts) and len(files) == 1)]


def parts_of(text: str, alone: bool = False) -> list[str]:
    """A value of --pose -> itself, or a FILE#NAME for each image if it is a file of several, or if it is alone and may
    be one."""
    path, part = split_part(text)
    if part is not None or Path(path).suffix.lower() not in POSE_SUFFIXES:
        return [text]
    try:
        frames = read_frames(path)
    except UserError:  # which the reader of this frame will raise again, and knows what to make of it
        return [text]
    if alone and frames[0].or_frames:
        frames = one_each(frames[0])
        print(f"{path}: its {len(frames)} poses are taken as {len(frames)} frames, not as people of one")
    return [f"{path}#{frame.name}" for frame in frames] if len(frames) > 1 else [text]


def read_clip(texts: Sequence[str], how: dict[str, Any], skip_empty: bool = False) -> list[Joints]:
    """Read what --pose takes, for each frame of a clip -> joints and sizes.

    how: options of read_joints
    skip_empty: leave out frames without a person; otherwise they get the pose of the frame before, or at the start of
        the next one. Either is said

    Raises UserError if nobody is in any.
    """
    found: list[Joints | None] = []
    for text in texts:
        try:
            found.append(read_joints(text, **how))
        except Nobody as error:
            found.append(None)
            reason = error
    present = [joints for joints in found if joints is not None]
    if not present:
        raise UserError(f"there must be a person in a frame, found nobody in {len(found)}: {reason}")
    if empty := [text for text, joints in zip(texts, found, strict=True) if joints is None]:
        what = "left out" if skip_empty else "held over from the frames before (--skip-empty leaves them out)"
        print(f"{len(empty)} of {len(found)} frames have nobody in them, {what}: {', '.join(empty[:5])}")
    if skip_empty:
        return present
    last = present[0]
    return [last := joints or last for joints in found]
