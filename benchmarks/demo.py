"""The bundled model on people it has never seen: a picture and a line of numbers.

    python benchmarks/demo.py --out demo.png     two minutes on two cores

Each row: source, pose, truth, result. The pairs are the first of those that benchmarks/people.py measures.
"""

import argparse
from pathlib import Path

import numpy as np
from people import baselines, errors, foreground, images_of, measure_pairs, overlap, paint, pixels, sheet, skeletons

from cfld import load
from cfld.tools.cli import HelpFormatter, command
from cfld.tools.pictures import save_image


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/demo.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture to write")
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder than the bundled one")
    parser.add_argument("--pairs", type=int, default=12, help="how many people")
    options = parser.parse_args(argv)

    model, vae = load(options.model)
    pairs = measure_pairs(options.pairs, model.config)
    results = paint(model, vae, pairs)
    sources, truths = images_of(pair.source for pair in pairs), images_of(pair.target for pair in pairs)
    save_image(options.out, sheet([sources, skeletons(pairs), truths, results], (256, 176), across=3))

    shown, plain = pixels(results), baselines(pairs)
    ours, copy, colours = (errors(x, pairs).mean() for x in (shown, plain["copy"], plain["mean colours"]))
    iou = np.mean([overlap(foreground(x), pair.target.labels > 0) for x, pair in zip(shown, pairs, strict=True)])
    print(
        f"{options.out}: {len(pairs)} people never trained on; error on the person {ours:.3f} (copying the source "
        f"{copy:.3f}, the true outline in the source's mean colours {colours:.3f}), overlap with the truth {iou:.2f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
