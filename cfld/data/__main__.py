"""Prepare photos for training and evaluation.

    python -m cfld.data prepare ROOT             flatten DeepFashion or Market-1501, check lists and photos
    python -m cfld.data pairs ROOT               make the same of your own photos in ROOT/PERSON/photo.jpg
    python -m cfld.data cache ROOT --model DIR   encode every training photo once, so that training need not

ROOT holds train.lst, test.lst, fasion-resize-pairs-{train,test}.csv and fasion-resize-annotation-{train,test}.csv (the
public files are spelled so; fashion- is read as well), and after preparing train_highres/ and test_highres/. Of
Market-1501 it holds bounding_box_{train,test}/, market-pairs-{train,test}.csv and market-annotation-{train,test}.csv.

Wherever a command asks for such a folder, people:2000x4 stands for 2,000 synthetic people in 4 poses each, rendered
when they are needed (people:2000x4@500: from seed 500 on).
"""

import argparse
import os
import sys
from pathlib import Path

from cfld.data.deepfashion import prepare
from cfld.data.encode import write_cache
from cfld.data.own_photos import make_pairs
from cfld.photos.keypoints import add_layout_option
from cfld.tools.cli import DEVICE_HELP, PRECISIONS, UserError, command, command_parser, pick_device


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.data", __doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="prepare | pairs | cache")

    def add(name: str, text: str, root: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("root", metavar="ROOT", type=Path, help=root)
        return made

    text = "Flatten and check a folder in DeepFashion's or Market-1501's layout."
    sub = add("prepare", text, "folder with the photos, lists and annotations")
    sub.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that open the photos")
    sub = add("pairs", "Make lists, pairs and annotations of your own photos.", "folder with PERSON/photo.jpg")
    sub.add_argument("--test-share", type=float, default=0.1, help="share of the people (the last) in the test split")
    sub.add_argument("--min-confidence", type=float, default=0.0, help="drop joints with a lower score")
    add_layout_option(sub)
    text = "Encode every training photo once; continues an interrupted run."
    sub = add("cache", text, "folder that prepare or pairs made")
    sub.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder with config.json and the VAE")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: ROOT/cache)")
    sub.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of the VAE")
    sub.add_argument("--device", help=DEVICE_HELP)
    options = parser.parse_args(argv)
    if options.command == "cache":
        out = options.out or options.root / "cache"
        write_cache(options.root, options.model, out, pick_device(options.device), PRECISIONS[options.precision])
        return
    if options.command == "pairs":
        counts = make_pairs(options.root, options.test_share, options.min_confidence, options.layout)
    else:
        if options.workers < 1:
            raise UserError(f"--workers must be at least 1, found {options.workers}")
        counts = prepare(options.root, options.workers)
    width = max(len(f"{count:,}") for count in counts.values())
    for name, count in counts.items():
        print(f"{count:{width},} {name}")


if __name__ == "__main__":
    sys.exit(main())
