"""Table 3's baselines by name, and config.json, which says which model it describes.

A config.json holds a config's fields and, for a baseline, its name under the key "baseline". B4 is B3 with another
unet_trainable (cross_qkv), so its name there is B3.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cfld.baselines.b1_to_b5 import B1, B2, B3, B5, B1Config, B2Config, B3Config, B5Config
from cfld.config import CFLDConfig, parse
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.tools.files import read_json

ABLATIONS = ("B1", "B2", "B3", "B4", "B5")
BASELINES: dict[str, tuple[type[CFLDConfig], type[CFLD]]] = {
    "B1": (B1Config, B1),
    "B2": (B2Config, B2),
    "B3": (B3Config, B3),
    "B5": (B5Config, B5),
}
# A config.json may also say by fields prompt and biases which model it describes. It then holds CLIP's config, too.
BY_FIELDS = {
    '["prd", true]': None,
    '["multi_scale", false]': "B1",
    '["clip", false]': "B2",
    '["prd", false]': "B3",
    '["swin", true]': "B5",
}


def ablation(config: CFLDConfig, name: str) -> CFLDConfig:
    """The config of a row of Table 3 from the full model's. Raises UserError for the config of a baseline."""
    if baseline := baseline_of(config):
        raise UserError(
            f"ablation {name} must be made of the full model's config, found one of baseline {baseline}: "
            f"leave --ablation out to train that one"
        )
    kind, _ = BASELINES["B3" if name == "B4" else name]
    made = kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
    return dataclasses.replace(made, unet_trainable="cross_qkv") if name == "B4" else made


def baseline_of(config: CFLDConfig) -> str | None:
    """The name of the baseline that a config describes; None for the full model."""
    return next((name for name, (kind, _) in BASELINES.items() if type(config) is kind), None)


def build(config: CFLDConfig, **pretrained: Any) -> CFLD:
    """The model that a config describes, CFLD or a baseline; pretrained: CFLD's unet and source_encoder."""
    name = baseline_of(config)
    kind = BASELINES[name][1] if name else CFLD
    return kind(config, **pretrained)


def to_dict(config: CFLDConfig) -> dict[str, Any]:
    """A config as plain dictionaries, for config.json."""
    name, values = baseline_of(config), dataclasses.asdict(config)
    if config.distilled is None:
        del values["distilled"]
    return ({"baseline": name} if name else {}) | values


def from_dict(values: dict[str, Any]) -> CFLDConfig:
    """A config from to_dict's form; a field that is left out has SD 1.5's value. Raises ValueError that names the field
    for one that is unknown or of a wrong type, and for interfaces that do not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"a config must be an object of fields, found {values!r:.60}")
    fields = dict(values)
    name = fields.pop("baseline", None)
    if "prompt" in fields or "biases" in fields:
        found = json.dumps([fields.pop("prompt", "prd"), fields.pop("biases", True)])
        if found not in BY_FIELDS:
            raise ValueError(f"prompt and biases must be one of {', '.join(BY_FIELDS)}, found {found:.60}")
        name = BY_FIELDS[found]
        if name != "B2":
            fields.pop("clip", None)
    if name is not None and name not in tuple(BASELINES):
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, found {name!r:.60}")
    return parse(fields, BASELINES[name][0] if name else CFLDConfig)


def read_config(path: str | Path) -> CFLDConfig:
    """A config from a JSON file in to_dict's form. Raises UserError that names the file."""
    try:
        return from_dict(read_json(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
