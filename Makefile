# Needs only make and a Python >= 3.10; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL: # both installations write to the same .venv
.PHONY: demo test test-slow torture lint bench wheel clean help

# Two processes; warnings and options are in pyproject.toml. COVERAGE=1 also measures what runs.
# The coverage that is asked for is that of all tests together.
PYTEST = $(BIN)/python -m pytest --doctest-modules -n 2 --dist loadgroup --durations 15
MEASURED = --cov --cov-report= --cov-fail-under=0
COVERAGE ?=
SEED ?= 0

demo: .venv/.installed-zoo ## reproduce the paper's tables and figures on the digits data, into demo/
	$(BIN)/unitroles reproduce digits --out demo --seeds 1

test: lint ## lint, types, tests and doctests but for the slow ones
	COVERAGE_FILE=.coverage.fast $(PYTEST) $(if $(COVERAGE),$(MEASURED)) -m "not slow" src tests

test-slow: .venv/.installed-bench ## the slow tests, branch coverage with that of `make test COVERAGE=1`, a smoke run of the benchmarks
	SHAPES=all COVERAGE_FILE=.coverage.slow $(PYTEST) $(MEASURED) -m slow tests
	@if [ -f .coverage.fast ]; then \
	  $(BIN)/coverage combine --keep .coverage.fast .coverage.slow && $(BIN)/coverage report; \
	else echo 'coverage is that of both: run make test COVERAGE=1 first' >&2; fi
	$(BIN)/python -m benchmarks.speed.run --quick > /dev/null

torture: .venv/.installed-test ## the property tests on many more examples, kills at many moments (SEED=0); twenty minutes, on an idle machine
	SHAPES=all HYPOTHESIS_PROFILE=torture $(PYTEST) --hypothesis-seed=$(SEED) -m property tests

lint: .venv/.installed-test ## format, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.installed-bench ## measure everything in docs/benchmarks.md (half an hour, on an idle machine)
	$(BIN)/python -m benchmarks.speed.run --out docs/benchmarks.md

wheel: .venv/.installed-wheel ## build the wheel, check it, install it in a clean environment and use it
	rm -rf dist build/wheel
	$(BIN)/python -m build --wheel --outdir dist
	$(BIN)/twine check --strict dist/*.whl
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/wheel && bin/python -W error ../../tests/support/light.py && bin/unitroles report light.nc

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
