"""What the README says and how the house is built: links, the paper-to-code map, imports."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\|[^|]+\| `(cfld\.[\w.]+)` \|$", README, re.M)
CORE = ("attention", "unet", "vae", "swin", "prd", "hga", "adapter", "scheduler")
DOCS = ROOT / "docs"
MODULES = sorted(p for p in (ROOT / "cfld").rglob("*.py"))


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_paper_to_code_map_resolves(name: str) -> None:
    parts = name.split(".")
    thing = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        thing = getattr(thing, part)
    assert thing.__doc__


def test_the_map_covers_every_equation_of_the_method() -> None:
    table = README[README.index("From the paper to the code") : README.index("## Public weights")]
    assert all(f"Eq. {equation}" in table for equation in (1, 3, 4, 6, 7)) and "Eq. 3 and 5" in table
    assert len(ROWS) == table.count("`cfld.") >= 12


@pytest.mark.parametrize(
    "page", ["README.md", "weights/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", (ROOT / page).read_text())
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports must name their module whole"
            names |= {node.module} | {f"cfld.{alias.name}" for alias in node.names if node.module == "cfld"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_six_packages_are_imported_at_run_time(path: Path) -> None:
    allowed = {"torch", "safetensors", "numpy", "PIL", "einops", "tqdm", "cfld"} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("name", CORE)
def test_core_modules_know_nothing_of_config_data_or_commands(name: str) -> None:
    ours = {module for module in imports(ROOT / "cfld" / f"{name}.py") if module.startswith("cfld")}
    assert ours <= {f"cfld.{other}" for other in CORE}


def test_arrows_run_one_way() -> None:
    order = [
        "files",
        "plot",
        "people",
        "photo",
        "estimator",
        "pose",
        "preview",
        "metrics",
        "person",
        *CORE,
        "clip",
        "config",
        "ablations",
        "model",
        "data",
        "attention_maps",
        "sample",
        "edit",
        "protocol",
        "figure",
        "playground",
        "study",
        "evaluate",
        "objective",
        "train",
        "convert",
    ]
    for name in order:
        package = ROOT / "cfld" / name
        for path in package.glob("*.py") if package.is_dir() else [package.with_suffix(".py")]:
            for module in imports(path):
                there = module.removeprefix("cfld.").split(".")[0]  # of "from cfld import __version__" none of them
                if module.startswith("cfld.") and there in order and name not in CORE:
                    assert order.index(there) <= order.index(name), (name, module)


def test_the_core_reads_in_one_sitting() -> None:
    assert sum(len((ROOT / "cfld" / f"{name}.py").read_text().splitlines()) for name in CORE) <= 1160


def test_nothing_refers_to_a_place_outside_the_project() -> None:
    for path in [
        *MODULES,
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.py"),
        ROOT / "Makefile",
    ]:
        assert "../shared" not in path.read_text(), path
