"""docs/tutorial.md, run as it stands, with a small random model in the bundled one's place."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def test_every_block_of_the_tutorial_runs_in_order(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(micro_folder, tmp_path / "weights" / "tiny")
    monkeypatch.setattr("cfld.folder.resources.files", lambda package: tmp_path / package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    saved = re.findall(r'save\("([^"]+)"\)', "".join(BLOCKS))
    assert len(BLOCKS) >= 10 and len(saved) >= 9
    for name in saved:
        with Image.open(tmp_path / name) as picture:
            assert len(np.unique(np.array(picture.convert("L")))) > 20, name


def test_the_tutorial_begins_with_three_lines() -> None:
    model, generate, _ = ast.parse(BLOCKS[1]).body
    assert ast.unparse(model) == "model, vae = cfld.load()"
    assert ast.unparse(generate) == "picture = cfld.generate(model, vae, photo, pose)[0]"
