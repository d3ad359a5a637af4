"""How the house is built: who may import whom, the README's map from the paper to the code, and links."""

import ast
import importlib
import pkgutil
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cfld

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
ROWS = re.findall(r"^\|[^|]+\| `(cfld\.[\w.]+)` \|$", README, re.M)
HALL = {
    "unet", "vae", "swin", "prd", "hga", "adapter", "scheduler", "samplers", "pose", "config", "model", "objective",
    "sampling", "sample", "train", "folder", "student",
}  # fmt: skip
NETWORKS = ("unet", "vae", "swin", "prd", "hga", "adapter", "scheduler")

# From the ground up. A module imports from its own line and from those above it in this list, which lie below.
FLOORS = (
    ("tools.checks",),
    ("unet", "vae", "swin", "prd", "hga", "adapter", "scheduler", "samplers"),
    ("tools",),
    ("people",),
    ("pose",),
    ("photos",),
    ("data",),
    ("config",),
    ("model",),
    ("student",),
    ("baselines",),
    ("folder",),
    ("data.encode",),
    ("objective",),
    ("sampling",),
    ("training",),
    ("sample",),
    ("train", "convert", "evaluate", "edit", "playground", "preview", "data.__main__", "people.__main__"),
)
COMMANDS = ("train", "convert", "evaluate", "edit", "playground")  # nobody imports these, and no __main__
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "cfld").rglob("*.py"))
}


def imports(tree: ast.AST) -> set[str]:
    """The modules that a file imports, wherever: at its top, inside a function, or by import_module("...")."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports must name their module whole"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & FILES.keys()
            found |= modules or {node.module}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            for argument in node.args[:1]:
                assert isinstance(argument, ast.Constant), f"{ast.unparse(node)} hides what it imports"
                found.add(str(argument.value))
    return found


IMPORTS = {name: imports(ast.parse(path.read_text())) for name, path in FILES.items()}
ARROWS = {name: {m for m in there if m in FILES} for name, there in IMPORTS.items() if name != "cfld"}


def floor(module: str) -> int:
    """On which floor a module lies: that of the longest name in FLOORS that it begins with."""
    name = module.removeprefix("cfld.")
    places = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    fitting = [room for room in places if name == room or name.startswith(f"{room}.")]
    assert fitting, f"{module} has no floor: add it to FLOORS"
    return places[max(fitting, key=len)]


def test_imports_of_every_kind_are_seen() -> None:
    source = "def f():\n    from cfld import train\n    import_module('cfld.edit')\n    import cfld.model as m"
    assert imports(ast.parse(source)) == {"cfld.train", "cfld.edit", "cfld.model"}
    with pytest.raises(AssertionError, match="hides what it imports"):
        imports(ast.parse("import_module(name)"))


def test_no_import_goes_round_in_a_circle() -> None:
    try:
        list(TopologicalSorter({name: there - {"cfld"} for name, there in ARROWS.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", ARROWS)
def test_arrows_run_one_way(module: str) -> None:
    for there in ARROWS[module] - {"cfld"}:
        assert floor(there) <= floor(module), f"{module} imports {there}, which lies above it"


@pytest.mark.parametrize("module", ARROWS)
def test_nobody_imports_a_command(module: str) -> None:
    own = module.removeprefix("cfld.").split(".")[0]
    for there in ARROWS[module]:
        room, *rest = there.removeprefix("cfld.").split(".")
        assert room == own or room not in COMMANDS, f"{module} imports {there}"
        assert rest[-1:] != ["__main__"] or there == module, f"{module} imports {there}"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_import_torch_einops_each_other_and_checks(name: str) -> None:
    packages = {"torch", "einops", "cfld"} | set(sys.stdlib_module_names)
    assert {module.split(".")[0] for module in IMPORTS[f"cfld.{name}"]} <= packages
    assert ARROWS[f"cfld.{name}"] <= {f"cfld.{other}" for other in NETWORKS} | {"cfld.tools.checks"}


@pytest.mark.parametrize("module", FILES)
def test_only_six_packages_are_imported_at_run_time(module: str) -> None:
    optional = {
        "cfld.photos.estimator": {"ai_edge_litert"},
        "cfld.training.run_folder": {"tensorboard"},
        "cfld.tools.pictures": {"pillow_heif"},
    }.get(module, set())
    allowed = {"torch", "safetensors", "numpy", "PIL", "einops", "tqdm", "cfld", *optional}
    assert {name.split(".")[0] for name in IMPORTS[module]} <= allowed | set(sys.stdlib_module_names)


def test_the_paper_lies_in_the_hall_and_the_rest_in_wings() -> None:
    files = {path.stem for path in (ROOT / "cfld").glob("*.py")} - {"__init__", "preview"}  # a former name's last word
    assert files == HALL


def test_every_module_can_be_imported_by_itself() -> None:
    for module in pkgutil.walk_packages(cfld.__path__, "cfld."):
        importlib.import_module(module.name)


def test_the_seven_files_of_the_paper_read_in_one_sitting() -> None:
    assert sum(len(FILES[f"cfld.{name}"].read_text().splitlines()) for name in NETWORKS) <= 1130


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_paper_to_code_map_resolves(name: str) -> None:
    assert pkgutil.resolve_name(name).__doc__


def test_the_map_covers_every_equation_of_the_method() -> None:
    table = README[README.index("From the paper to the code") :].split("\n## ")[0]
    assert all(f"Eq. {equation}" in table for equation in (1, 3, 4, 6, 7)) and "Eq. 3 and 5" in table
    assert len(ROWS) == table.count("`cfld.") >= 12


@pytest.mark.parametrize(
    "page", ["README.md", "weights/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", (ROOT / page).read_text())
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readmes_line_counts_are_nearly_right_and_no_page_has_a_placeholder() -> None:
    rows = re.findall(r"^\| (\[.*) \| .* \| (\d+) \|$", README, re.M)
    assert len(rows) == 12
    for files, count in rows:
        paths = [ROOT / path for path in re.findall(r"\((cfld/\w+\.py)\)", files)]
        found = sum(len(path.read_text().splitlines()) for path in paths)
        assert abs(int(count) - found) <= 0.05 * found, f"{files} has {found} lines: make counts"
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        assert not re.search(r"@[A-Z]+@", page.read_text()), page


def test_nothing_refers_to_a_place_outside_the_project() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.py"), ROOT / "Makefile"]
    for path in [*FILES.values(), *pages]:
        assert "../shared" not in path.read_text(), path
