# Everything starts here: `make demo` and `make test` each set up what they need, once. `make help` lists the rest.

VENV ?= .venv
READY := $(VENV)/.gemirec-ready
BIN := $(VENV)/bin

# Options of `make demo`: without LOG it simulates a log with planted interests.
LOG ?=
ITEMS ?=
USERS ?=
MODEL ?=
OUT ?= demo
DEMO_ARGS ?=

PYTEST_ARGS ?=
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_FIND_LINKS VENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint fix docs wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo LOG=events.parquet [ITEMS=items.parquet] [USERS=users.parquet] [MODEL=comirec_sa] [OUT=demo]"

$(READY): pyproject.toml tools/setup.sh
	@sh tools/setup.sh

setup: $(READY) ## Create .venv with gemirec and its developer tools (done by the others when needed)

demo: $(READY) ## From a log to recommendations, end to end; LOG=, ITEMS=, USERS=, MODEL=, OUT= for your own
	@$(BIN)/gemirec demo $(if $(LOG),--log "$(LOG)") $(if $(ITEMS),--items "$(ITEMS)") $(if $(USERS),--users "$(USERS)") \
	  $(if $(MODEL),--model "$(MODEL)") --out "$(OUT)" $(DEMO_ARGS)

test: $(READY) ## Run the tests (PYTEST_ARGS="..." is passed on)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST_ARGS)

slow: $(READY) ## Run the tests that the default suite leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY) ## Style, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## Let ruff mend what it can, and generate the documentation's tables
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/generate_docs.py

docs: $(READY) ## Build the documentation site into site/
	@EXTRAS=dev,docs sh tools/setup.sh
	$(BIN)/python tools/generate_docs.py
	$(BIN)/mkdocs build --strict

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove what was built, and the environment
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
