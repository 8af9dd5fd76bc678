# Every command sets up what it needs: a virtual environment in .venv, and for the tests the servers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test faults check bench docs servers format clean

help:  ## Show these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## Run a worker and a few tasks on SQLite, with a progress bar
	$(BIN)/python examples/demo/demo.py

servers:
	@sh .ci/servers

test: $(STAMP) servers  ## Run the tests (starts private servers on free loopback ports)
	$(BIN)/python -m pytest -m "not faults"

faults: $(STAMP) servers  ## Kill, stop and cut off real workers, and print what came of it (ten minutes)
	UMBEL_MACHINE_EXAMPLES=300 UMBEL_MACHINE_STEPS=60 $(BIN)/python -m pytest -m "" \
		tests/faults tests/unit/test_lease_model.py tests/properties/test_broker_machine.py

check: $(STAMP)  ## Format check, lint, types, layers
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(STAMP) servers  ## Compare with the peers on one Redis, in one run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/run.py

docs: $(STAMP)  ## Write the pages that are made from the code
	$(BIN)/python docs/make_settings.py

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format src tests examples benchmarks
	$(BIN)/ruff check --fix src tests examples benchmarks

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
