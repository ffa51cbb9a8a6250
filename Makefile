# Needs only make and a Python >= 3.10; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL: # both installations write to the same .venv
.PHONY: demo test test-all lint bench clean help

demo: .venv/.installed-zoo ## reproduce the paper's tables and figures on the digits data, into demo/
	$(BIN)/unitroles reproduce digits --out demo --seeds 1

test: lint ## lint, types, tests and doctests but for the slow ones
	$(BIN)/python -m pytest --doctest-modules -m "not slow" -n 2 --dist loadgroup src tests

test-all: lint .venv/.installed-bench ## all tests with branch coverage, a smoke run of the benchmarks
	$(BIN)/python -m pytest --doctest-modules -n 2 --dist loadgroup --cov --cov-report=term src tests
	$(BIN)/python -m benchmarks.speed.run --quick > /dev/null

lint: .venv/.installed-test ## format, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.installed-bench ## measure everything in docs/benchmarks.md (half an hour, on an idle machine)
	$(BIN)/python -m benchmarks.speed.run --out docs/benchmarks.md

clean: ## remove caches, coverage files, builds and demo/; .venv stays
	rm -rf demo build dist site htmlcov .coverage .coverage.* coverage.xml
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

# pip is the last thing that venv writes: an environment that stopped half way is made again.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo 'unitroles needs Python 3.10 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed-%: pyproject.toml | .venv/bin/pip
	@echo "installing unitroles[$*] into .venv; this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
