# make demo     train three methods on generated tasks, on this machine's CPU, and print the table
# make methods  train every method for 100 steps on the same tasks and print scores and routing sums
# make fusion   train three experts, fuse them by every method and print what was lost
# make studio   serve the studio on http://127.0.0.1:7860
# make test     all tests; browser tests need chromium, GPU tests need CUDA (both say why they skip)
# make test-long  the tests that take minutes
# make soak     ten minutes of random kills and of load, on an idle machine; figures for docs/reliability.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 7860
WORKERS ?= 2

# A plain `pip install torch` may choose a build that brings gigabytes of CUDA packages along. The studio needs none of
# them on a CPU, so a known good version goes in first. On a CUDA machine: make TORCH="torch --index-url ..." install
TORCH ?= torch==2.13.0

.PHONY: demo methods fusion studio test test-long soak gpu-check lint install install-dev lock audit clean

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
		--timeout 300 -rsR $(PYTEST)

test-long: install-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m long -n $(WORKERS) --dist loadfile \
		--timeout 1800 -rsR $(PYTEST)

soak: install-dev
	$(BIN)/python -m benchmarks.soak --out docs/measurements/soak.json --page $(SOAK)

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

# The lock files hold versions and hashes of everything but torch. They go in first, so that torch brings nothing else
# along; the requirements after them find nothing left to do, except on a Python that the lock does not know, or with
# LOCK=no (an index that lacks those versions).
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
LOCK ?= yes
LOCKED = [ "$(LOCK)" = yes ] && $(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'

# The stamps make a second call quick: pip runs again only after the requirements change.
$(VENV)/.installed: requirements.txt requirements.lock | $(BIN)/python
	@if $(LOCKED); then $(PIP) --no-deps --require-hashes -r requirements.lock; fi
	$(PIP) $(TORCH)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-dev.lock $(VENV)/.installed
	@if $(LOCKED); then $(PIP) --no-deps --require-hashes -r requirements-dev.lock; fi
	$(PIP) -r requirements-dev.txt
	@touch $@

# After a change of the requirements, or for newer versions.
lock: | $(BIN)/python
	$(PIP) uv
	$(BIN)/python -m recipes.lock "$(firstword $(TORCH))"

# In an environment of its own, since it brings packages that the studio does not need.
audit: | $(BIN)/python
	@[ -x $(VENV)-audit/bin/pip-audit ] || { $(BIN)/python -m venv $(VENV)-audit && \
		$(VENV)-audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit; } || \
		echo "pip-audit cannot be installed from here."
	@$(VENV)-audit/bin/python -m recipes.audit

clean:
	rm -rf $(VENV) $(VENV)-audit .pytest_cache .ruff_cache out
