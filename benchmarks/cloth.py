"""From which of several cloths is the pattern of a generated top?

Letters in shapes: N pairs, H side of an image, M pixels of a mask.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from people import Array, Numbers, Pair, Pictures, Shot, mean, photographs, recut

from cfld import CFLDConfig, people

CLOTHS = 2025  # for which a seed's random numbers are used
FABRICS, FABRIC_PIXELS = 20, 300  # cloths to choose from, and the fewest pixels that a photo must show, at H = 128
SIGMA = 4.0  # of the blur that is subtracted from cloths, pixels


def high_pass(picture: Array, mask: Array) -> Array:
    """A picture (H, H, 3) minus its blur, both within the mask (H, H) alone -> (M, 3)."""
    from scipy.ndimage import gaussian_filter

    weight = mask[..., None].astype(np.float64)
    blurred, total = (gaussian_filter(x, (SIGMA, SIGMA, 0)) for x in (picture * weight, weight))
    return picture[mask] - blurred[mask] / total[mask]


def fabric_test(methods: dict[str, Pictures], pairs: Sequence[Pair], config: CFLDConfig) -> Numbers:
    """By method, the share of pictures whose top has the pattern of the truth and not of one of 19 alternatives, which
    are the same photo with another cloth for the top: by the L2 distance, which blur misleads to faint patterns, and by
    correlation, which it does not. Only pixels that depend on the cloth count, the torso without its sleeves."""
    kinds = tuple(kind for kind in people.WEAVES if kind not in people.PLAIN)
    candidates: list[int] = []
    shots: list[Shot] = []
    for i, pair in enumerate(pairs):
        top = pair.person.top
        one_pattern = top.fabric.kind in kinds and not (top.back or top.front_print or top.back_print)
        if one_pattern and pair.target.shows("top", FABRIC_PIXELS):
            rng = np.random.default_rng([pair.person.seed, CLOTHS])
            fabrics = [people.random_textile(rng, kinds) for _ in range(FABRICS - 1)]
            shots += [(recut(pair.person, fabric), pair.pose) for fabric in fabrics]
            candidates.append(i)
    others = iter(photographs(shots, config))
    nearest: dict[str, list[bool]] = {name: [] for name in methods}
    alike: dict[str, list[bool]] = {name: [] for name in methods}
    for i in candidates:
        photos = [*itertools.islice(others, FABRICS - 1), pairs[i].target]  # the true one is last
        truths = np.stack([photo.picture for photo in photos])
        mask = pairs[i].target.mask("top") & (truths != truths[-1]).any((0, -1))
        if mask.sum() < FABRIC_PIXELS:
            continue
        cloths = np.stack([high_pass(truth, mask) for truth in truths])  # (20, M, 3)
        for name, pictures in methods.items():
            found = high_pass(pictures[i], mask)
            distances = ((found - cloths) ** 2).sum((1, 2))
            correlations = (found * cloths).sum((1, 2)) / np.sqrt((cloths**2).sum((1, 2)))
            nearest[name].append(distances.argmin() == FABRICS - 1)
            alike[name].append(correlations.argmax() == FABRICS - 1)
    return {
        "pairs": len(next(iter(nearest.values()))),
        "chance": 1 / FABRICS,
        "nearest": {name: mean(values) for name, values in nearest.items()},
        "most correlated": {name: mean(values) for name, values in alike.items()},
    }
