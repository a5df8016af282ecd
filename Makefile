# `make demo` and `make test` set up everything they need, on a fresh machine with Python 3.11 or newer.
# GOMP_SPINCOUNT: threads that wait by spinning for long make a run several times slower as soon as anything else uses
# a core; with this many turns an idle machine loses nothing.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs
STEPS ?= 500
PIP = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
NOT_HERE = not slow and not gpu

.PHONY: demo test test-slow test-pages docs test-gpu bench-attention bench-step lint format
demo: $(VENV)/.installed        ## train digits, then draw them in one network call: runs/digits/samples.png
	GOMP_SPINCOUNT=10000 $(VENV)/bin/python runs/digits.py --out $(OUT) --steps $(STEPS)

test: $(VENV)/.installed-dev    ## the quick tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "$(NOT_HERE)"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=2 $(VENV)/bin/python -m pytest -m "slow and not gpu"

test-pages: $(VENV)/.installed-dev    ## the demo pages and the site, in headless Chromium (Debian's package chromium)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "slow and not gpu" tests/demo tests/docs

docs: $(VENV)/.installed-dev    ## the documentation as a site, into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

# worksteal: a worker starts with tests that follow one another, which share kernels
test-gpu:                       ## on a machine with a GPU, in its own environment (many cores: kernels compile in parallel)
	PYTHONPATH=src python3 -m pytest -m gpu -n 14 --dist worksteal

bench-attention:                ## the kernel beside its rivals; then add --plot to draw it
	PYTHONPATH=src:benchmarks python3 benchmarks/attention.py --json benchmarks/results/attention_gpu.json

bench-step:                     ## training steps of the sizes that matter
	PYTHONPATH=src python3 benchmarks/train_step.py --json benchmarks/results/train_step_gpu.json

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.installed
