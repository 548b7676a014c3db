# make serve   creates .venv, installs, serves the bundled model with 1 attention and 2 expert instances
# make check   the loop while working: linter, types and the fast tests, about a minute
# make test    creates .venv, installs, runs linter, then type checker beside the suite on the CPU
# make test-all  what takes long: every model on every shape, real processes, hosts, packaging
# make figures creates .venv, installs, makes the figures and the report of docs/evaluation.md again

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SERVE  ?= --attention-instances 1 --expert-instances 2

.PHONY: serve check test test-all lint types fast unit slow figures format clean

serve: $(VENV)/.runtime
	@exec $(BIN)/janus serve $(SERVE) $(if $(PORT),--port $(PORT))

check: lint
	@$(MAKE) --no-print-directory --jobs=2 types fast

test: lint
	@$(MAKE) --no-print-directory --jobs=2 types unit

test-all: slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not integration"

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

figures: $(VENV)/.bench
	$(BIN)/python -m paper $(FIGURES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Janus needs Python 3.11 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Janus and what it needs into $(VENV) (torch is large; a minute or two) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Janus, what it needs and the tools of the test suite into $(VENV) (a minute or two) ..."
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.runtime $@

$(VENV)/.bench: $(VENV)/.runtime
	@echo "installing what benchmarks and figures need ..."
	@$(PIP) --editable '.[bench]'
	@touch $@
