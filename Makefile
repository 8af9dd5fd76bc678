# Every command sets up what it needs: a virtual environment in .venv, and for the tests the servers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most tests wait for processes: more of them at once than there are cores.
JOBS ?= 3

.PHONY: help demo test faults interop audit check bench docs picture servers format clean

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

# Compiled first: the tests start a thousand processes, and each would compile what it imports where the
# environment forbids it to write that down.
test: $(STAMP) servers  ## Run the tests (starts private servers on free loopback ports)
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest -m "not faults" -n $(JOBS) --dist loadfile

faults: $(STAMP) servers  ## Kill, stop and cut off real workers, and print what came of it (half an hour)
	$(BIN)/python -m compileall -q src
	UMBEL_FAULT_TASKS=50000 UMBEL_MACHINE_EXAMPLES=300 UMBEL_MACHINE_STEPS=60 $(BIN)/python -m pytest -m "" \
		tests/faults tests/unit/test_lease_model.py tests/properties/test_broker_machine.py

interop: servers  ## Run what others wrote for Celery with Umbel: Flower, Celery 5.4 and 5.7, Django, Node.js
	$(PYTHON) tests/peers.py
	.venv-interop/bin/python -m compileall -q src
	UMBEL_INTEROP=1 .venv-interop/bin/python -m pytest tests/interop

audit:  ## bandit, the wheel built twice, its CycloneDX document in dist/, known vulnerabilities
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check 'bandit>=1.8' 'build>=1.2' \
		'cyclonedx-bom>=5' 'hatchling>=1.24' 'pip-audit>=2.7'
	.venv-audit/bin/python .ci/audit.py

check: $(STAMP)  ## Format check, lint, types, layers
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(STAMP) servers  ## Compare with the peers on one Redis, in one run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/run.py

picture: $(STAMP)  ## Make the picture of the dashboard that README.md shows (needs chromium and chromedriver)
	@mkdir -p docs/images
	PICTURE=docs/images/dashboard.png $(BIN)/python -m pytest -q tests/system/test_dashboard_browser.py -k picture

docs: $(STAMP)  ## Write the pages that are made from the code
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_compatibility.py

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format src tests examples benchmarks
	$(BIN)/ruff check --fix src tests examples benchmarks

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) .venv-interop* .venv-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis
