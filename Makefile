# make demo    train TINY on the sample photos for a few minutes and look at what it paints
# make test    lint, types and the fast tests
# make test-slow, make overfit: the long ones
# make tiny    the bundled model from seeds, in half a day; goes on where it was stopped
# make gallery: the pictures of docs/gallery, with the bundled model

PY = .venv/bin/python

.PHONY: demo test test-slow overfit tiny gallery lint clean

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,dev]'
	touch .venv/ready

# The commands that a person would type, on the sample photos: about 7 minutes on two cores, and again from where it stopped.
DEMO = --preset tiny --data runs/demo/data --save-every 50 --resume
demo: .venv/ready
	mkdir -p runs/demo && cp -R tests/data/fashion/. runs/demo/data
	$(PY) -m cfld.data prepare runs/demo/data
	$(PY) -m cfld.train $(DEMO) --stage vae --out runs/demo/vae --steps 200 --batch 4 --warmup 20 --sample-every 0
	$(PY) -m cfld.train $(DEMO) --init runs/demo/vae/model --out runs/demo/cfld --steps 200 --batch 8 --warmup 20 \
		--decay-at 0.8 --sample-every 200
	cp runs/demo/cfld/samples/step_00000200.png runs/demo/demo.png
	@echo "runs/demo/demo.png: source, pose, truth and result of held-out pairs, after a few minutes of training"

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
