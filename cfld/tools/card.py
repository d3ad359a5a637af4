"""The card of a model folder: a README.md in the form that model hubs read, YAML before Markdown.

    --- license: mit, library_name: cfld, ... ---
    # What it is, what it was made from, the command that made it, how to load it

cfld.load does not read it. A training's card takes its licence from the card of the folder that it began with.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "README.md"
RAIL, SD15 = "creativeml-openrail-m", "stable-diffusion-v1-5/stable-diffusion-v1-5"  # as the hub calls them
UNKNOWN = "unknown"
TERMS = {
    "mit": "MIT, as the code.",
    RAIL: "CreativeML Open RAIL-M, since it holds Stable Diffusion's weights; its restrictions go with every copy.",
    UNKNOWN: "that of the weights and the data it was made from: put it into the first lines before you publish it.",
}
LOAD = """\
```python
import cfld

model, vae = cfld.load("DIR")  # this folder
```

    python -m cfld.sample --model DIR --source photo.jpg --pose pose.json --out out.png
"""
LOAD_STUDENT = """\
It is a student: it generates in 2 to 8 steps, without guidance, and in no other way.

```python
import cfld
from cfld.sampling import TURBO

model, vae = cfld.load("DIR")  # this folder
pictures = cfld.generate(model, vae, photo, pose, TURBO)
```

    python -m cfld.sample --model DIR --turbo --source photo.jpg --pose pose.json --out out.png
"""
LOAD_PARTS = """\
It holds parts of a model, for `python -m cfld.train --init DIR`.
"""
LOAD_DIFFUSERS = """\
```python
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("DIR", subfolder="unet")
vae = AutoencoderKL.from_pretrained("DIR", subfolder="vae")
scheduler = DDPMScheduler.from_pretrained("DIR", subfolder="scheduler")
```

The prompt, pose features and query biases, which make it CFLD, are not in these parts: `unet` takes the prompt alone.
"""
LOAD_OFFICIAL = """\
The two files are those of the [authors' code](https://github.com/YanzuoLu/CFLD), as safetensors.
"""


def front_matter(licence: str, base_models: Sequence[str] = ()) -> str:
    """The YAML that a hub reads. licence, base_models: as the hub spells them."""
    bases = ["base_model:", *(f"- {name}" for name in base_models)] if base_models else []
    tags = ["tags:", "- cfld", "- pose-guided-person-image-synthesis", "- arxiv:2402.18078"]
    lines = [f"license: {licence}", "library_name: cfld", "pipeline_tag: image-to-image", *bases, *tags]
    return "\n".join(["---", *lines, "---", "", ""])


def model_card(
    licence: str, base_models: Sequence[str], facts: Mapping[str, str], command: Sequence[str], load: str = LOAD
) -> str:
    """The text of a card.

    licence, base_models: as the hub spells them
    facts: what else there is to say, by what it is about
    command: the words of the command that made it
    load: how to load it
    """
    lines = [
        "# CFLD",
        "",
        "It generates the person of a photo in another pose: "
        "[Coarse-to-Fine Latent Diffusion](https://arxiv.org/abs/2402.18078) (CVPR 2024), in plain PyTorch.",
        "",
        *(f"- **{name}**: {text}" for name, text in facts.items()),
        f"- **licence**: {TERMS.get(licence, licence)}",
        "",
        "Made by",
        "",
        "    " + " ".join(shlex.join(command).split("\n")),
        "",
        "## How to load it",
        "",
    ]
    return front_matter(licence, base_models) + "\n".join(lines) + f"\n{load}"


def read_card(folder: str | Path) -> tuple[str, list[str]]:
    """Licence and base models of a folder, by its card. Without a card: unknown, and none."""
    path = Path(folder) / NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\n(.*?\n)---\n", text, re.S)
    licence = re.search(r"^license: *([\w.-]+) *$", head[1], re.M) if head else None
    bases = re.search(r"^base_model:((?: *\n- *[\w./-]+)+)$", head[1], re.M) if head else None
    return licence[1] if licence else UNKNOWN, re.findall(r"- *([\w./-]+)", bases[1]) if bases else []


def command_line(module: str, options: Any) -> list[str]:
    """The words of a command whose options are a dataclass: those that are not the default."""
    words = ["python", "-m", module]
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if value is None or value == field.default:
            continue
        words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def training_card(options: Any, image_size: int, load: str | None = None) -> str:
    """The card of what a training makes.

    options: a TrainConfig
    image_size: of the model
    load: how to load it (default: as a model folder, or a student's)
    """
    load = load or (LOAD_STUDENT if options.stage == "distill" else LOAD)
    synthetic = str(options.data).startswith("people:")
    licence, base_models = read_card(options.init) if options.init else ("mit", [])
    if licence == "mit" and not synthetic:
        licence = UNKNOWN  # photos may be under other terms
    size = f"{image_size}x{image_size}"
    named = f"of {Path(options.config).name}" if options.config else f"preset {options.preset}"
    facts = {
        "architecture": ", ".join([named, size, *([f"baseline {options.ablation}"] if options.ablation else [])]),
        "data": f"synthetic people ({options.data}); it has seen no photo"
        if synthetic
        else f"{options.data}, whose terms apply as well",
        "training": f"stage {options.stage}, {options.recipe} recipe, batch {options.global_batch}"
        + (f", from {options.init}" if options.init else ", from nothing"),
    }
    return model_card(licence, base_models, facts, command_line("cfld.train", options), load)
