# Tenfold's commands. `make help` lists them; nothing but Python >= 3.11, make and a C++ compiler
# is needed beforehand, and without the compiler everything still runs, more slowly.

PORT ?= 8000
MODEL ?= smollm2-135m
OUT ?= build/gpu
# More words for pip, for instance a mirror: make test PIP_ARGS="--find-links ..."
PIP_ARGS ?=
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
READY := .venv/.installed
RAY := .venv/.ray
NATIVE := $(shell find native -type f 2>/dev/null)
# The models that the tests run on, beside tiny ones with seeded weights.
TEST_MODELS := smollm2-135m gemma3-270m minilm-l6

.DEFAULT_GOAL := help
.PHONY: help env serve test test-all models sanitize lint format types contracts docs bench gpu clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: $(READY) ## make .venv with everything installed

# stdout stays free: `make serve` prints one line there.
$(READY): pyproject.toml constraints.txt $(NATIVE)
	@test -n "$(PYTHON)" || { echo "Tenfold needs Python 3.11 or newer, and none was found" >&2; exit 2; }
	@echo "Making .venv with $$($(PYTHON) --version) ..." >&2
	@$(PYTHON) -m venv .venv >&2
	@$(BIN)/pip install --disable-pip-version-check $(PIP_ARGS) \
		-c constraints.txt -e ".[dev,bench]" >&2
	@$(BIN)/python -c 'import tenfold._native' 2>/dev/null || \
		echo "The native kernels are not built (is there a C++ compiler?); the torch rows run." >&2
	@touch $@

serve: $(READY) ## serve MODEL at PORT
	@exec $(BIN)/tenfold serve $(MODEL) --port $(PORT)

models: $(READY) ## fetch the models the tests run on (this agrees to the Gemma terms)
	@$(BIN)/tenfold pull $(TEST_MODELS) --accept-licence

test: models ## run the tests that take less than five seconds each
	$(BIN)/pytest -q -n 2 --dist worksteal

# Ray is large, and only its own tests want it.
$(RAY): $(READY)
	@$(BIN)/pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[ray]" >&2
	@touch $@

test-all: models $(RAY) ## run the slow tests too
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not gpu"

# Needs a compiler and cmake, no .venv.
sanitize: ## run the native tests under address, undefined-behaviour and thread sanitizers
	@for kind in address,undefined thread; do \
		dir=build/sanitize-$$kind; \
		cmake -S native -B $$dir -DTENFOLD_TESTS=ON -DTENFOLD_SANITIZE=$$kind \
			-DCMAKE_BUILD_TYPE=None >/dev/null && \
		cmake --build $$dir -j2 >/dev/null || exit 1; \
		echo "$$kind:"; $$dir/native_tests || exit 1; \
	done

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

format: $(READY) ## put code into shape
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

types: $(READY) ## check types
	$(BIN)/mypy

contracts: $(READY) ## check that imports go down the floors only
	$(BIN)/lint-imports

docs: $(READY) ## write docs/cli.md and docs/config.md anew
	$(BIN)/python -m tenfold.cli.docs docs

bench: $(READY) ## list the benchmarks; run one with .venv/bin/tenfold bench NAME
	@$(BIN)/tenfold bench --help

# Needs no .venv: a machine with a GPU often brings a Python with its own torch.
gpu: ## run all GPU tests and benchmarks, within 9 minutes; reports go to OUT
	@PYTHONPATH=src $$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) \
		-m tenfold.bench.gpu $(OUT)

clean: ## delete what was made here; pulled models stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
