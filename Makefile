# make demo    what the bundled model paints of unseen people, and a short training from it
# make test    lint, types and the fast tests
# make test-slow, make overfit: the long ones
# make tiny    the bundled model from seeds, in hours (docs/tiny.md); goes on where it was stopped
# make gallery: the pictures of docs/gallery, with the bundled model

PY = .venv/bin/python

.PHONY: demo test test-slow overfit tiny gallery lint clean

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,dev]'
	touch .venv/ready

# Unseen people in new poses, then a short training on people drawn on the way: under five minutes on two cores.
demo: .venv/ready
	$(PY) benchmarks/demo.py --out runs/demo/demo.png
	$(PY) -m cfld.train --finetune weights/tiny --data people:60x4 --out runs/demo/train --steps 60 --batch 8 --lr 5e-5 \
		--warmup 10 --sample-every 60 --save-every 20 --resume
	@echo "runs/demo/demo.png: source, pose, truth and result; runs/demo/train: log.jsonl, samples/, model/"

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest

test-slow: .venv/ready
	$(PY) -m pytest -m slow

overfit: .venv/ready
	$(PY) benchmarks/overfit.py

tiny: .venv/ready
	$(PY) benchmarks/tiny.py

gallery: .venv/ready
	$(PY) benchmarks/gallery.py

clean:
	rm -rf .venv runs/demo .pytest_cache .mypy_cache .ruff_cache
