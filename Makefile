# Needs make and Python 3.11 or newer; everything else is installed into .venv, at the versions and hashes pinned in
# requirements.txt and requirements-dev.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := README.md docs/FORMAT.md docs/RELIABILITY.md docs/SCALE.md
PINS := requirements.txt requirements-dev.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format docs bench bench-compression bench-encryption memory memory-box float32 soak fuzz audit upgrade clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with the pinned packages; made anew when the pins change

$(INSTALLED): $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.13 test")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: $(INSTALLED)  ## back up an emulated database to an emulated Box, restore it from there, compare; needs no account
	@$(BIN)/python -m tests.demo

test: lint  ## install, lint, check types, run all tests
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## bring the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## renew the generated parts of the documentation
	$(BIN)/cog -P -r -I . $(DOCS)

bench: $(INSTALLED)  ## measure everything side by side, write bench/RESULTS.md; some 20 minutes
	$(BIN)/python -m bench; code=$$?; $(BIN)/cog -P -r -I . docs/SCALE.md; exit $$code

bench-compression: $(INSTALLED)  ## measure compression alone
	$(BIN)/python -m bench.compression

bench-encryption: $(INSTALLED)  ## measure what encryption costs: CPU and memory of each step, encrypted and in clear
	$(BIN)/python -m bench.encryption

memory: $(INSTALLED)  ## measure memory
	$(BIN)/python -m bench.memory

memory-box: $(INSTALLED)  ## measure memory and disk of a backup to Box, and memory of fetching it
	$(BIN)/python -m bench.memory_box

float32: $(INSTALLED)  ## print and read back every float32 there is; some ten minutes
	$(BIN)/python -m bench.float32

soak: $(INSTALLED)  ## the long trials: 1,000 kills, chaos, 13,000 damages, two million documents there and back; some 50 minutes
	$(BIN)/python -m bench.kills --count 1000
	$(BIN)/python -m bench.chaos --count 300
	$(BIN)/python -m bench.damage
	$(BIN)/python -m bench.damage --count 3000 --encrypted
	$(BIN)/python -m bench.soak --svg docs/soak-rss.svg

fuzz: $(INSTALLED)  ## throw bytes at every reader for ten minutes; guided by coverage where atheris can be installed
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		-r requirements-fuzz.txt || echo "no atheris for this Python: mutations without coverage"
	.venv-fuzz/bin/python -m bench.fuzz

audit: $(INSTALLED)  ## look up known vulnerabilities of the pinned packages; one that cannot be looked up fails
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.txt

# Universal: one file for every Python from 3.11 on and every platform.
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header

upgrade: $(INSTALLED)  ## pin the newest versions that fit requirements.in and requirements-dev.in
	for name in requirements requirements-dev; do \
		$(COMPILE) $$name.in --output-file $$name.new && \
		{ echo "# Exact pins of $$name.in, with hashes. Not edited by hand: make upgrade renews them."; cat $$name.new; } > $$name.txt && \
		rm $$name.new || exit 1; \
	done

clean:  ## remove .venv, caches and the demo's snapshots
	rm -rf $(VENV) .venv-fuzz fuzz-findings demo-backups .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
