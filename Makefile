# Everything a newcomer needs: `make quickstart` and `make test`. Needs Debian or Ubuntu, Python 3.11+.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where runs are kept; `orchestrate` itself looks there too without being told.
STORE ?= $(or $(ORCHESTRATE_STORE),runs)
# Debian packages for the tests against a real SLURM, a real browser and a real database.
APT_PACKAGES := slurm-wlm munge slurmdbd slurm-wlm-mysql-plugin mariadb-server chromium postgresql environment-modules

# The page that the report stage of a run has written.
define PRINT_REPORT
import json, pathlib, sys
for stage in json.load(sys.stdin)["stages"]:
    if stage["kind"] == "report":
        page = pathlib.Path(stage["folder"], "outputs", "report.md")
        print(page.read_text(encoding="utf-8"), page, sep="\n")
endef
export PRINT_REPORT

.PHONY: help install install-dev quickstart test check format learn-check bench-data bench-train bench-peers kill-soak matrix clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## create the environment and install orchestrate into it

install-dev: $(VENV)/.installed-dev ## the same with what tests and checks need

$(VENV)/.installed: pyproject.toml constraints.txt .ci/install.sh
	PYTHON=$(PYTHON) bash .ci/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt .ci/install.sh
	PYTHON=$(PYTHON) bash .ci/install.sh $(VENV) dev
	@touch $(VENV)/.installed $@

quickstart: install ## run the main job on this machine, on videos it draws itself; ARGS="key=value ..." changes it
	$(BIN)/orchestrate submit recipes/quickstart.yaml $(ARGS) --store $(STORE)
	@$(BIN)/orchestrate status --json --store $(STORE) | $(BIN)/python -c "$$PRINT_REPORT"

# Schedulers, servers and browsers are real, and late now and then on a machine that does other work
# as well: what failed is tried once more by itself, and both tries stay in the log.
AGAIN := --last-failed --last-failed-no-failures none

# Whole pipelines (e2e) start several ranks each: they run one at a time.
test: install-dev ## everything that needs no GPU; installs SLURM and Chromium where it may
	bash .ci/apt.sh $(APT_PACKAGES)
	$(BIN)/pytest -n 2 --dist loadfile -m "not e2e" $(PYTEST_ARGS) || \
	  $(BIN)/pytest -m "not e2e" $(AGAIN) $(PYTEST_ARGS)
	$(BIN)/pytest -m e2e $(PYTEST_ARGS) || $(BIN)/pytest -m e2e $(AGAIN) $(PYTEST_ARGS)

check: install-dev ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

learn-check: install ## minutes: does DPC learn motion here, against random weights, three seeds
	$(BIN)/python benchmarks/learn_check.py --store $(STORE)/learn-check

# Written beside the figures: the processor and what else it was doing.
bench-data: install ## minutes: the data path against its targets, written to benchmarks/results
	set -e; for name in loader prepare augment index listing; do \
	  $(BIN)/python benchmarks/data_$$name.py --out benchmarks/results; done

bench-train: install ## minutes: training against hand-written loops, saves, restarts, logging
	set -e; for name in engine_step engine_restart checkpoint_stall logging_cost; do \
	  $(BIN)/python benchmarks/$$name.py --out benchmarks/results; done

bench-peers: install-dev ## half an hour: the same chain by other tools, in good times and in bad
	bash .ci/apt.sh $(APT_PACKAGES)
	$(BIN)/python benchmarks/peers.py $(ARGS)

matrix: install-dev ## an hour: each fault on each kind of SLURM, written to docs; goes on where it was stopped
	bash .ci/apt.sh $(APT_PACKAGES)
	$(BIN)/python -m tests.matrix.run $(ARGS)

kill-soak: install-dev ## minutes: trainings killed at random moments must end bit-equal
	$(BIN)/python benchmarks/kill_soak.py --out benchmarks/results

clean: ## remove the environment (never the store)
	rm -rf $(VENV)
