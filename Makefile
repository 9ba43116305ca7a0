# Needs make and Python 3.11 or newer. Everything else is installed into .venv, at exact versions with hashes: what runs
# from requirements.txt; what tests, lints and measures from requirements-dev.txt, when a target first needs it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV_INSTALLED := $(VENV)/.installed-dev
FAST := docs install frozen show restore_options same_place box_emulator page_states tables_emulator
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
DOCS := docs/FORMAT.md docs/REFERENCE.md

# Compiled modules may be kept: the tests start the scripts some hundred times.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-bytecode test-fast lint format docs bench bench-chains bench-compression bench-encryption memory memory-box float32 soak fuzz audit upgrade clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv with what runs, and nothing else; recreated when requirements.txt changes

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.13 install")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEV_INSTALLED): $(INSTALLED) requirements-dev.txt
	$(PIP_INSTALL) -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: $(INSTALLED)  ## back up an emulated database to an emulated Box, restore it from there, compare; needs no account
	@$(BIN)/python -m tests.demo

test: $(DEV_INSTALLED)  ## install what tests need, lint, check types, run all tests
	$(MAKE) --no-print-directory --jobs 2 lint test-bytecode
	$(BIN)/python -m pytest -n 8 --dist worksteal

# Or each of the workers rewrites the assertions of all tests for itself: a minute of CPU. What fails, pytest tells.
test-bytecode: $(DEV_INSTALLED)
	-@$(BIN)/python -m pytest --collect-only >/dev/null 2>&1

test-fast: $(DEV_INSTALLED)  ## the quick tests: documents, commands, old snapshots, emulators; under a minute
	$(BIN)/python -m pytest -n 6 $(FAST:%=tests/test_%.py)

lint: $(DEV_INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_INSTALLED)  ## bring the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV_INSTALLED)  ## renew the generated parts of the documentation
	$(BIN)/cog -P -r -I . $(DOCS)

bench: $(DEV_INSTALLED)  ## measure everything side by side, write bench/RESULTS.md; at most 20 minutes on two quiet cores
	$(BIN)/python -m bench

bench-chains: $(DEV_INSTALLED)  ## measure one collection read by many chains against the bare serial loop; two minutes
	$(BIN)/python -m bench --only chains --output -

bench-compression: $(DEV_INSTALLED)  ## measure compression alone
	$(BIN)/python -m bench.compression

bench-encryption: $(DEV_INSTALLED)  ## measure what encryption costs: CPU and memory of each step, encrypted and unencrypted
	$(BIN)/python -m bench.encryption

memory: $(DEV_INSTALLED)  ## measure memory: few and many documents, large ones
	$(BIN)/python -m bench.memory

memory-box: $(DEV_INSTALLED)  ## measure memory and disk of a backup to Box, and memory of fetching it
	$(BIN)/python -m bench.memory_box

float32: $(DEV_INSTALLED)  ## print and read back every float32 there is; some ten minutes
	$(BIN)/python -m bench.float32

soak: $(DEV_INSTALLED)  ## the long trials: 200,000 histories, 1,000 kills, chaos, 13,000 damages, two million documents there and back; an hour
	$(BIN)/python -m tests.trials.histories --count 200000
	$(BIN)/python -m tests.trials.kills --count 1000
	$(BIN)/python -m tests.trials.chaos --count 300
	$(BIN)/python -m tests.trials.damage
	$(BIN)/python -m tests.trials.damage --count 3000 --encrypted
	$(BIN)/python -m bench.soak

fuzz:  ## throw bytes at every reader for ten minutes; guided by coverage where atheris can be installed
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		-r requirements-fuzz.txt || echo "no atheris for this Python: mutations without coverage"
	.venv-fuzz/bin/python -m tests.trials.fuzz

audit: $(DEV_INSTALLED)  ## look up known vulnerabilities of the pinned packages; one that cannot be looked up fails
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.txt

# Universal: one file for every Python from 3.11 on and every platform.
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header

upgrade: $(DEV_INSTALLED)  ## pin the newest versions that fit requirements.in and requirements-dev.in
	for name in requirements requirements-dev; do \
		$(COMPILE) $$name.in --output-file $$name.new && \
		{ echo "# Exact pins of $$name.in, with hashes. Not edited by hand: make upgrade renews them."; cat $$name.new; } > $$name.txt && \
		rm $$name.new || exit 1; \
	done

clean:  ## remove .venv, caches and the demo's snapshots
	rm -rf $(VENV) .venv-fuzz build dist *.egg-info fuzz-findings demo-backups .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
