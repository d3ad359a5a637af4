# make demo    train TINY on the sample photos for a few minutes and look at what it paints
# make test    lint, types and the fast tests
# make test-slow, make overfit: the long ones

PY = .venv/bin/python

.PHONY: demo test test-slow overfit lint clean

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,dev]'
	touch .venv/ready

demo: .venv/ready
	$(PY) benchmarks/demo.py

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

clean:
	rm -rf .venv runs/demo .pytest_cache .mypy_cache .ruff_cache
