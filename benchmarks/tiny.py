"""Make weights/tiny, the bundled model, from nothing but seeds.

    python benchmarks/tiny.py        eight hours on two cores (docs/tiny.md); run it again to go on where it was stopped

Draws the people, trains the VAE on them, encodes them once, trains the source encoder to tell their attributes, trains
all of TINY in three runs, and packs the averaged weights of the last in half precision with the logs, the commit and
the measures of benchmarks/people.py.
"""

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from cfld import load, save
from cfld.tools.files import write_text

ROOT = Path(__file__).parents[1]
RUN, OUT = ROOT / "runs" / "tiny", ROOT / "weights" / "tiny"

PEOPLE = "--identities 6000 --poses 4 --seed 0 --test-fraction 0.01"
VAE = "--batch 4 --steps 4000 --lr 8e-4 --warmup 100 --decay-at 0.7 --ema 0.998"
SOURCE = "--batch 32 --steps 10000 --lr 1e-3 --warmup 200 --decay-at 0.7 --ema 0.998"
WHOLE = "--batch 16 --lr 4e-4 --clip 1 --ema 0.9995 --eval-every 500"
RUNS = {  # of the whole method, each from the averaged weights of the one before
    "cfld": "--steps 14000 --warmup 500 --decay-at 0.85",
    "further_1": "--steps 5000 --warmup 200 --decay-at 0.8 --seed 1",
    "further_2": "--steps 4000 --warmup 200 --decay-at 0.8 --seed 2",
}
LOGS = "--save-every 250 --sample-every 500 --resume"
PROCESSES = 2  # of one thread each, which train faster than one process of two threads


def run(*argv: str | Path, **environment: str) -> None:
    """python -m argv, or stop with its exit code."""
    code = subprocess.run([sys.executable, "-m", *map(str, argv)], cwd=ROOT, env=os.environ | environment).returncode
    if code:
        sys.exit(code)


def train(*argv: str | Path) -> None:
    """cfld.train in several processes."""
    together = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), "-m", "cfld.train")
    run(*together, *argv, OMP_NUM_THREADS="1")


def commit() -> str:
    """The commit that is checked out, written down when the run begins; or what else the file was made to say."""
    path = RUN / "commit.txt"
    if not path.is_file():
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        write_text(path, said.stdout)
    return path.read_text().strip()


def pack() -> None:
    """Write weights/tiny in half precision, with the logs."""
    model, vae = load(RUN / list(RUNS)[-1] / "model")
    save(OUT, model.half(), vae.half(), replace=True)
    for stage in ("vae", "source", *RUNS):
        shutil.copy(RUN / stage / "log.jsonl", OUT / f"{stage}_log.jsonl")
        options = json.loads((RUN / stage / "config.json").read_text())["options"]
        (OUT / f"{stage}_options.json").write_text(json.dumps(options, indent=2) + "\n")
    (OUT / "README.md").write_text(
        f"TINY, trained on drawn people (python -m cfld.people) by `make tiny`; MIT, as the project.\n\n"
        f"Begun at commit {commit()}, packed on {date.today()}. The trainings' logs and options are beside this file;\n"
        f"docs/tiny_measures.md says what it can do, docs/tiny.md how it was found.\n"
    )


def main() -> None:
    RUN.mkdir(parents=True, exist_ok=True)
    print(f"commit {commit()}")
    data, cache, vae, source = (RUN / name for name in ("people", "cache", "vae", "source"))
    common = ["--preset", "tiny", "--data", data, *LOGS.split()]
    run("cfld.people", data, *PEOPLE.split())
    if not (vae / "model").is_dir():
        train("--stage", "vae", "--out", vae, *common, *VAE.split())
    run("cfld.data", "cache", data, "--model", vae / "model", "--out", cache)
    common += ["--cache", cache]
    if not (source / "model").is_dir():
        train("--stage", "source", "--init", vae / "model", "--out", source, *common, *SOURCE.split())
    before = source
    for name, options in RUNS.items():
        out = RUN / name
        if not (out / "model").is_dir():
            train("--init", before / "model", "--out", out, *common, *WHOLE.split(), *options.split())
        before = out
    pack()
    subprocess.run([sys.executable, ROOT / "benchmarks" / "people.py", "--model", OUT], check=True)


if __name__ == "__main__":
    main()
