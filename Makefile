# make demo     train three methods on generated tasks, on this machine's CPU, and print the table
# make methods  train every method for 100 steps on the same tasks and print scores and routing sums
# make fusion   train three experts, fuse them by every method and print what was lost
# make studio   serve the studio on http://127.0.0.1:7860
# make test     all tests; browser tests need chromium, GPU tests need CUDA (both say why they skip)
# make test-long  the tests that take minutes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 7860
WORKERS ?= 2

# A plain `pip install torch` may choose a build that brings gigabytes of CUDA packages along. The studio needs none of
# them on a CPU, so a known good version goes in first. On a CUDA machine: make TORCH="torch --index-url ..." install
TORCH ?= torch==2.13.0

.PHONY: demo methods fusion studio test test-long gpu-check lint install install-dev clean

demo: install
	$(BIN)/python app.py demo

methods: install
	$(BIN)/python -m recipes.every_method

fusion: install
	$(BIN)/python -m recipes.fusion_demo

studio: install
	$(BIN)/python app.py serve --port $(PORT)

# Files of tests stay together (--dist loadfile) so that what a module trains once is shared by its tests; one thread
# each, since the workers are the parallelism.
test: install-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--timeout 300 -rs $(PYTEST)

test-long: install-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m long -n $(WORKERS) --dist loadfile \
		--timeout 1800 -rs $(PYTEST)

# Runs with whatever python is given: a CUDA machine has its own torch (make gpu-check BIN_PYTHON=python3).
BIN_PYTHON ?= $(BIN)/python
gpu-check:
	$(BIN_PYTHON) benchmarks/gpu_check.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tessera needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call quick: pip runs again only after the requirements change.
$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache out
