# headrace. `make` checks, `make run` starts it, `make test` runs every test there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := $(VENV)/.uv/bin/uv
SOURCES := src tests $(wildcard bench)

.DEFAULT_GOAL := check
.PHONY: check install run test browser ci planted bench dev format reference lock clean help

## check: format, lint, types, reference pages and the fast tests; under a minute
check: $(INSTALLED)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow" tests/house tests/unit tests/conformance

## install: make .venv with everything that running and testing need
install: $(INSTALLED)

# The environment is made anew only when the lock changes. Exactly the locked files are installed, proved by their hashes.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv has a folder of its own: syncing removes what is not locked
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/.uv uv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(INSTALLED)

## run: start headrace with the default pipelines; Ctrl-C stops it
run: $(INSTALLED)
	@$(BIN)/headrace run $(ARGS)

## test: install, then run every test there is
test: $(INSTALLED) browser
	$(BIN)/pytest -q

# The page is looked at in a real browser. Where it can't be installed, those tests say that they were skipped.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
		|| echo "no Chromium here: the tests of the page are skipped"; }

## ci: exactly what continuous integration runs
ci:
	.ci/run

## planted: plant each known bug in a copy of the tree, and see that its tests notice it; under ten minutes
planted: $(INSTALLED)
	$(BIN)/python -m tests.house.planted $(ARGS)

## bench: measure, and print tables with this machine, versions and ratios; under ten minutes
bench: $(INSTALLED)
	$(BIN)/python -m bench $(ARGS)

## dev: run from this folder with data in a folder of its own and every traceback shown
dev: $(INSTALLED)
	HEADRACE_DEBUG=1 HEADRACE_DATA_DIR=$${HEADRACE_DATA_DIR:-.headrace} $(BIN)/headrace run $(ARGS)

## format: put the code into its form
format: $(INSTALLED)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

## reference: write docs/reference and docs/headrace.schema.json from the code
reference: $(INSTALLED)
	$(BIN)/python -m headrace.reference

## lock: choose the newest versions that pyproject.toml allows, and write them down with their hashes
lock: $(INSTALLED)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade \
		--group dev pyproject.toml --output-file requirements.lock

## clean: remove the environment and what tools left behind
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

## help: show this list
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)
