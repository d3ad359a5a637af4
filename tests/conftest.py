import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from references import DATA, randomise

from cfld import CFLD, VAE, AdapterConfig, CFLDConfig, HGAConfig, PRDConfig, SwinConfig, UNetConfig, VAEConfig
from cfld.data.__main__ import main as data_command
from cfld.data.batch import Batch, collate
from cfld.data.deepfashion import prepare
from cfld.data.pairs import FashionPairs
from cfld.folder import save
from cfld.train import main as train_command

os.environ["HF_HUB_OFFLINE"] = "1"

# Files of long tests. make test begins with them, so that no process waits at the end for another's.
LONG = (
    "test_distributed", "test_train", "test_baselines", "test_checkpoint", "test_official", "test_distill",
    "test_people", "test_systems", "test_sample", "test_pretrain", "test_playground", "test_wheel", "test_benchmarks",
    "test_formats", "test_parity", "test_convert", "test_edit", "test_photo", "test_metrics", "test_tutorial",
    "test_kills", "test_splits", "test_evaluate",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


# The same classes, with a block per level and small enough to train a few steps within half a second.
MICRO = CFLDConfig(
    image_size=64,
    unet_trainable="cross_kv",
    unet=UNetConfig(channels=(16, 16, 32, 32), depth=1, num_heads=2, context_width=16, groups=8),
    vae=VAEConfig(channels=(8, 8, 16, 16), depth=1, groups=8),
    swin=SwinConfig(image_size=32, width=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window=4),
    prd=PRDConfig(num_queries=3, width=16, depth=1, num_heads=2, source_width=128, source_positions=1),
    hga=HGAConfig(source_widths=(16, 32, 64), output_widths=(32, 16, 16), branches=2, depth=1, head_width=8),
    adapter=AdapterConfig(pose_size=32, channels=(16, 16, 32), groups=8),
)


def micro_model(seed: int = 0) -> tuple[CFLD, VAE]:
    """A MICRO model and its VAE with random weights, none of them zero."""
    model, vae = CFLD(MICRO), VAE(MICRO.vae)
    randomise(model, seed), randomise(vae, seed + 1)
    model.freeze()
    return model.eval(), vae.eval()


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of MICRO."""
    folder = tmp_path_factory.mktemp("models") / "micro"
    save(folder, *micro_model())
    return folder


@pytest.fixture(scope="session")
def micro_json(micro_folder: Path) -> str:
    return str(micro_folder / "config.json")


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photos, prepared. Tests only read it."""
    root = tmp_path_factory.mktemp("data") / "fashion sample"
    shutil.copytree(DATA / "fashion", root)
    prepare(root)
    return root


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]):
    """Run a command that must fail as a user's mistake: exit code 2, one line of error that holds these words."""

    def check(main, *argv: object, words: list[str]) -> str:
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        for word in words:
            assert word in lines[0], (word, lines[0])
        return lines[0]

    return check


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, the machine's own, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="the pages are tested with playwright: pip install it")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("the pages are tested in Chromium, and none is on the PATH: apt-get install chromium")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path)


@pytest.fixture
def visit(browser):
    """visit(address, width=, scheme=) opens a page in a profile of its own. The test fails if a script of it does."""
    contexts, errors = [], []

    def open_page(address: str, width: int = 1280, height: int = 900, scheme: str = "light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="session")
def batch(fashion: Path) -> Batch:
    pairs = FashionPairs(fashion, "train", MICRO.image_size, MICRO.swin.image_size)
    return collate([pairs[i] for i in (0, 40, 80, 120)])


@pytest.fixture(scope="session")
def argv(fashion: Path, tmp_path_factory: pytest.TempPathFactory, micro_folder: Path):
    """The arguments that train MICRO in a run folder of this name."""
    root = tmp_path_factory.mktemp("runs")

    def arguments(name: str, *more: object, init: Path | None = micro_folder) -> list[str]:
        argv = ["--config", micro_folder / "config.json", "--data", fashion, "--out", root / name, "--batch", 4]
        argv += ["--init", init] if init else []
        argv += ["--precision", "fp32", "--lr", 1e-3, "--warmup", 2, "--sample-every", 0, "--log-every", 1]
        return [str(a) for a in [*argv, "--device", "cpu", *more]]

    return arguments


@pytest.fixture(scope="session")
def run(argv):
    """Run the command on MICRO in a run folder of this name."""

    def train(name: str, *more: object, **others: Path | None) -> Path:
        arguments = argv(name, *more, **others)
        assert train_command(arguments) == 0
        return Path(arguments[arguments.index("--out") + 1])

    return train


@pytest.fixture(scope="session")
def whole(run) -> Path:
    return run("whole", "--steps", 6, "--ema", 0.9)


@pytest.fixture(scope="session")
def cache(fashion: Path, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photos, encoded once."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    argv = ["cache", fashion, "--model", micro_folder, "--out", folder, "--precision", "fp32", "--device", "cpu"]
    assert data_command([str(a) for a in argv]) == 0
    return folder
