# `make demo` and `make test` set up everything they need, on a fresh machine with Python 3.11 or newer.
# OMP_WAIT_POLICY: threads that wait by spinning make a run several times slower as soon as anything else uses a core.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs
STEPS ?= 500
PIP = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
NOT_HERE = not slow and not gpu

.PHONY: demo test test-slow test-gpu lint format
demo: $(VENV)/.installed        ## train digits, then draw them in one network call: runs/digits/samples.png
	OMP_WAIT_POLICY=passive $(VENV)/bin/python runs/digits.py --out $(OUT) --steps $(STEPS)

test: $(VENV)/.installed-dev    ## the quick tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "$(NOT_HERE)"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=2 $(VENV)/bin/python -m pytest -m "slow and not gpu"

test-gpu:                       ## on a machine with a GPU, in its own environment
	PYTHONPATH=src python3 -m pytest -m gpu

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
