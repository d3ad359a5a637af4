"""Preview what the model sees of a photo: its joints, which side is which, and the window that is cut out.

    python -m cfld.photos photo.jpg --pose pose.json --out preview.png
    python -m cfld.photos photo.jpg --out preview.png photo.json      joints found by BlazePose, and kept

The preview is in the photo's own pixels, and padded where the window is larger than the photo. An --out that ends in
.json gets the joints as OpenPose's JSON, which every --pose takes. --mask is white on the person, as `cfld.edit edit`
takes it. docs/poses.md lists the files that --pose takes.
"""

import sys
from pathlib import Path

from cfld.photos.crop import fit
from cfld.photos.estimator import search
from cfld.photos.keypoints import add_pose_options, joints_on, pick, pose_settings
from cfld.photos.preview import openpose_json, preview
from cfld.pose import JOINTS
from cfld.tools.cli import UserError, command, command_parser
from cfld.tools.files import refuse_overwrite, write_json
from cfld.tools.pictures import check_picture_name, read_image, save_image


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.photos", __doc__)
    parser.add_argument("photo", metavar="PHOTO", help="the photo")
    parser.add_argument("--pose", metavar="FILE", help="file of its joints, or a photo (default: found in it)")
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="an image, a .json file, or both")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="write the mask of the person found, an image")
    add_pose_options(parser.add_argument_group("reading poses"))
    parser.add_argument("--force", action="store_true", help="replace the files if they exist")
    options = parser.parse_args(argv)

    how, outs = pose_settings(options), [Path(out) for out in options.out]
    if options.mask and options.pose:
        raise UserError("--mask is of a person found in the photo: leave out --pose")
    for out in [*outs, *filter(None, [options.mask])]:
        if out.suffix.lower() != ".json" or out == options.mask:
            check_picture_name(out)
        refuse_overwrite(out, options.force)
    photo = read_image(options.photo, upright=True)
    joints = joints_on(photo, options.pose or options.photo, **how)
    crop = fit((photo.height, photo.width), joints)
    missing = [name for name, joint in zip(JOINTS, joints, strict=True) if min(joint) < 0]
    print(f"{len(JOINTS) - len(missing)} of {len(JOINTS)} joints; missing: {', '.join(missing) or 'none'}")
    print(f"window: {crop.width}x{crop.height} from x = {crop.left}, y = {crop.top} of {photo.width}x{photo.height}")
    for out in outs:
        if out.suffix.lower() == ".json":
            write_json(out, openpose_json(joints, photo))
        else:
            save_image(out, preview(photo, joints, crop))
        print(f"wrote {out}")
    if options.mask:
        save_image(options.mask, pick(search(photo), options.person).mask_image(photo.size))
        print(f"wrote {options.mask}")


if __name__ == "__main__":
    sys.exit(main())
