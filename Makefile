# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-fast test-costs gpu real style clean

install: .venv/.installed

.venv/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: install
	$(BIN)/prefix-rl quickstart

PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest
PARALLEL = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) $(PARALLEL)

# For every edit: without what is marked slow, multirank, real or browser, and what tests/costs.txt lists
test-fast: install
	$(PYTEST) $(PARALLEL) --fast

# CPU seconds of every test, the 30 dearest, and tests/costs.txt anew
test-costs: install
	rm -f .costs.jsonl
	$(PYTEST) $(PARALLEL) --costs .costs.jsonl || true
	$(BIN)/python tests/costs.py .costs.jsonl --write

# On one NVIDIA GPU, in ten minutes, without a network (WHEELS: a folder of wheels, if .venv is not there yet)
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu.sh $(WHEELS)

# Real tokenizers and a small real model for the tests marked `real`, which are skipped without them (214 MB)
real: install
	$(BIN)/python tests/real.py $(FROM)

style:
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info
