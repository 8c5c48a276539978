# make demo | make test need nothing but Python 3.11 or newer; everything is installed into $(VENV).
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One thread per test worker: two workers on two cores are quicker than two threads that wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-slow test-browser check format bench contract lock clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.run ## install what the commands need into .venv

demo: $(VENV)/.run ## run the main job on the embedded model organism
	$(BIN)/safe-sail demo

serve: $(VENV)/.run ## serve what the demo found, at http://127.0.0.1:8420
	$(BIN)/safe-sail serve

test: $(VENV)/.dev check ## every check, and every test that is neither slow nor in a browser
	$(PYTEST) -n 2 -m 'not slow and not browser and not gpu and not hub'

test-slow: $(VENV)/.dev ## whole commands on the organism, its figures, and the demo
	$(PYTEST) -n 2 -m 'slow and not browser and not gpu and not hub'

test-browser: $(VENV)/.dev ## the page in a real Chromium (installed by apt where it is missing and we are root)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -q -y chromium; }
	$(PYTEST) -m browser

check: $(VENV)/.dev ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## put the code into one form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## run every benchmark; each prints one JSON line
	for file in benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

lock: $(VENV)/.dev ## write constraints.txt anew from what is installed
	{ echo "# Exact versions that CI and the README install with; 'make lock' writes this file."; \
	  $(PIP) freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } > constraints.new && mv constraints.new constraints.txt

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
