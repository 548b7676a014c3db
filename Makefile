# make serve   creates .venv, installs, serves the bundled model with 1 attention and 2 expert instances
# make test    creates .venv, installs, runs linter, then type checker beside the whole suite on the CPU
# make figures creates .venv, installs, makes the figures and the report of docs/evaluation.md again

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SERVE  ?= --attention-instances 1 --expert-instances 2

.PHONY: serve test lint types unit figures format clean

serve: $(VENV)/.runtime
	@exec $(BIN)/janus serve $(SERVE)

test: lint
	@$(MAKE) --no-print-directory --jobs=2 types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest

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
