# `make` alone lists the targets. The virtual environment is built on first use.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo stop status test test-full lint format bench docs requirements

# Which Python builds .venv, as `make setup PYTHON=python3.12`; by default the first supported one found.
PYTHON ?=
# `make demo KEEP=1` leaves the stack up. `make test ARGS="-k ledger"` passes arguments on.
KEEP ?=
ARGS ?=
export KEEP

STAMP := .venv/.waybill-stamp
RUN := .venv/bin/python
SETUP = python=; for name in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	if [ "$$("$$name" -c 'import sys; print(sys.version_info >= (3, 8))' 2>/dev/null)" = True ]; then python=$$name; break; fi; done; \
	test -n "$$python" || { echo "setup: no Python found; install CPython 3.11 or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" rehearsal/setup_env.py

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## build .venv from the pinned requirements (PYTHON= chooses the interpreter)
	@$(SETUP) $(if $(PYTHON),--python "$(PYTHON)")

$(STAMP): requirements.txt requirements-dev.txt
	@$(SETUP) $(if $(PYTHON),--python "$(PYTHON)")

demo: $(STAMP) ## run every DAG against simulated remotes (KEEP=1 leaves the UI up)
	@$(RUN) -m rehearsal.demo $(ARGS)

stop: $(STAMP) ## end what `make demo KEEP=1` left running
	@$(RUN) -m rehearsal stop

status: $(STAMP) ## say what runs, and where
	@$(RUN) -m rehearsal status || true

# Two test processes, file by file (tests/conftest.py); the real Airflow's tests come first and stay in one of them.
SIDE_BY_SIDE := -n 2 --no-loadscope-reorder

test: $(STAMP) ## the tests that fit into 20 minutes
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m "not full" $(ARGS)

test-full: $(STAMP) ## all tests
	$(RUN) -m pytest $(SIDE_BY_SIDE) $(ARGS)

lint: $(STAMP) ## ruff, mypy and vulture (dead code)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy include simulators rehearsal plugins dags harness
	$(RUN) -m vulture

format: $(STAMP) ## let ruff put the code in order
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(STAMP) ## measure the published figures
	$(RUN) -m benchmarks $(ARGS)

docs: $(STAMP) ## write the generated pages of docs/ anew
	$(RUN) -m rehearsal.docs $(ARGS)

COMPILE = $(RUN) rehearsal/setup_env.py -- pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
	--custom-compile-command "make requirements" $(ARGS)

requirements: $(STAMP) ## pin requirements*.in anew (ARGS=--upgrade for newer versions)
	$(COMPILE) requirements.in --output-file requirements.txt
	$(COMPILE) requirements-dev.in --output-file requirements-dev.txt
