# Two commands set up everything: `make demo` and `make test`. Each makes the environment it needs.

PYTHON ?= python3
BIN := .venv/bin
BASE := .venv-base/bin
NATIVE := $(wildcard src/opq/codec/native/*)
# Of the README's results: those that take minutes, and those that take longer (all night on two cores) or want a peer.
QUICK := main_job.py laplace_fit.py plan_cost.py ablations.py efficiency.py
LONG := finetune_cost.py mnist.py 'finetune.py resnet20' 'finetune.py resnet56' finetune_mobilenet.py codec.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check base reproduce reproduce-quick clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 17

demo: .venv/ready  ## Train a small network, compress it, load it back, and compare
	$(BIN)/python examples/digits.py

test: check .venv/ready base  ## Everything that must hold: lint, types, tests, and tests without PyTorch
	$(BIN)/python -m pytest

check: .venv/ready  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

base: .venv-base/ready  ## The tests that hold for the base install, as a wheel and without PyTorch
	$(BASE)/python -m pytest tests/cli tests/base

reproduce: reproduce-quick  ## Every result anew, then the README's tables; needs the data that OPQ_DATA points to
	for script in $(LONG); do $(BIN)/python benchmarks/$$script || exit 1; done
	$(BIN)/python benchmarks/readme.py

reproduce-quick: .venv/ready  ## The results that take minutes, then the README's tables
	for script in $(QUICK); do $(BIN)/python benchmarks/$$script || exit 1; done
	$(BIN)/python benchmarks/readme.py

clean:  ## Remove environments and caches
	rm -rf .venv .venv-base build dist src/*.egg-info src/opq/codec/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/ready: requirements/dev.lock pyproject.toml $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv-base/ready: requirements/base.lock .venv/ready $(shell find src -name '*.py')
	$(PYTHON) -m venv .venv-base
	$(BASE)/python -m pip install --quiet -r requirements/base.lock
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BASE)/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	touch $@
