# Commands of this project; `make help` lists them.
# It needs Python and make. requirements-dev.lock has the packages of `make install`, with hashes.

VENV := .venv
BIN := $(VENV)/bin
# Default: the first Python on the path that is new enough. `make install PYTHON=/path/to/python3.12` chooses another one.
PYTHON ?=
# Tests wait for timers and processes about half of their time, so three of them keep two cores busy.
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) * 3 / 2)))
ARGS ?=
# Most of a run is starts of Python, which take a quarter longer without compiled modules. Some images forbid to write them.
PYTHON_CACHED := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python
PROTOS := $(shell find protos -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help install up test check bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.stubs ## make .venv with everything in it, and the stubs

up: install ## start the mesh
	@exec $(BIN)/mesh up

test: install ## run the whole suite (ARGS="-k name" narrows it)
	$(PYTHON_CACHED) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: install ## lint, types, import rules, generated code, contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mesh generate
	$(BIN)/mesh check

bench: install ## run the benchmarks beside their peers (needs h2load and wrk)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-bench.lock
	$(BIN)/python -m benchmarks $(ARGS)

lock: ## resolve the dependencies again (needs uv on the path)
	uv pip compile pyproject.toml $(LOCK) --output-file requirements.lock
	uv pip compile pyproject.toml --group dev --constraint requirements.lock $(LOCK) --output-file requirements-dev.lock
	uv pip compile --group build $(LOCK) --output-file requirements-build.lock
	uv pip compile pyproject.toml --group bench --constraint requirements-dev.lock $(LOCK) --output-file requirements-bench.lock

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --quiet

clean: ## remove generated files (not the data in .mesh)
	rm -rf $(VENV) gen dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .mesh/test-stubs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@if [ ! -x $(BIN)/python ]; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
			"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
			$(if $(PYTHON),break;) \
		done; \
		[ -n "$$found" ] || { echo "make install needs Python 3.11 or newer on the path (or PYTHON=/path/to/it)" >&2; exit 1; }; \
		"$$found" -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "$$found has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
		"$$found" -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null
	@touch $@

$(VENV)/.installed: $(VENV)/.python requirements-dev.lock pyproject.toml
	@echo "installing the locked packages into $(VENV) (once; a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stubs: $(VENV)/.installed mesh.toml $(PROTOS)
	$(BIN)/mesh generate
	@touch $@
