"""Synthetic people: clothed figures made from integers, with only numpy and pillow.

    person = identity(7)                                   who, in which clothes: an immutable description
    pose = sample_pose(np.random.default_rng(0))           how they stand, from where they are seen
    photo = render(person, pose)                           .image (256, 176, 3), .keypoints (18, 2), .labels (256, 176)

    photo = draw(7, index=3)                               the fourth photo of person 7: what the data set is made of

Seeds below 600,000 are for training, those up to 699,999 for validation and evaluation, the rest for independent
checks.
In reading order: textiles, garments, identity, pose, mesh (the body), dress (cloth on it), raster, paint, render.
"""

from cfld.people.garments import SHOE_KINDS, Bottom, Jacket, Shoes, Top
from cfld.people.identity import POSE, Identity, attribute_vector, attributes, identity, refabric, stream
from cfld.people.paint import PARTS
from cfld.people.pose import FRAMINGS, VIEWS, Pose, sample_pose
from cfld.people.render import Rendered, render
from cfld.people.textiles import PLAIN, WEAVES, Print, Textile, random_textile

TRAINING_SEEDS = 600_000  # seeds below this number may be trained on
OWN_SEEDS = 700_000  # seeds below this number belong to the project; the others are for independent checks

__all__ = [
    "FRAMINGS",
    "OWN_SEEDS",
    "PARTS",
    "PLAIN",
    "SHOE_KINDS",
    "TRAINING_SEEDS",
    "VIEWS",
    "WEAVES",
    "Bottom",
    "Identity",
    "Jacket",
    "Pose",
    "Print",
    "Rendered",
    "Shoes",
    "Textile",
    "Top",
    "attribute_vector",
    "attributes",
    "draw",
    "identity",
    "photo_pose",
    "random_textile",
    "refabric",
    "refuse_seeds",
    "render",
    "sample_pose",
]


def refuse_seeds(first: int, last: int, limit: int = TRAINING_SEEDS) -> None:
    """Raise ValueError unless 0 <= first <= last < limit."""
    if not 0 <= first <= last < limit:
        purpose = "training" if limit == TRAINING_SEEDS else "the project's own data"
        raise ValueError(
            f"seeds for {purpose} must be 0 to {limit - 1}, found {first} to {last}: choose smaller seeds, "
            "the others are kept for measures that must stay independent"
        )


def photo_pose(seed: int, index: int) -> Pose:
    """The pose of photo `index` of a person: 0 is seen from the front, 1 from behind unless they sit, the others from
    anywhere."""
    view = ("front", "back")[index] if index < 2 else None
    return sample_pose(stream(seed, POSE, index), view=view)


def draw(
    seed: int, index: int, height: int = 256, width: int = 176, supersample: int = 2, limit: int = TRAINING_SEEDS
) -> Rendered:
    """Photo `index` of the person of a seed below the limit; the limit is the training seeds' unless given."""
    refuse_seeds(seed, seed, limit)
    return render(identity(seed), photo_pose(seed, index), height, width, supersample)
