# Each target makes what it needs. The environment lies in .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

# Threads that wait should sleep: on few cores, waiting in circles costs other work several times its time.
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test lab lint notebooks clean-env help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: .venv/base  ## run the first notebook on embedded data; print the matrix and where everything lies
	@mkdir -p $(DEMO)
	$(BIN)/papermill notebooks/03_drift_synthesis.ipynb $(DEMO)/03_drift_synthesis.ipynb -p OUTPUT $(DEMO) --no-log-output
	@$(BIN)/jupyter nbconvert --log-level ERROR --to html $(DEMO)/03_drift_synthesis.ipynb
	@echo
	@cat $(DEMO)/matrix.txt
	@echo
	@echo "picture of the matrix   $(CURDIR)/$(DEMO)/matrix.png"
	@echo "executed notebook       $(CURDIR)/$(DEMO)/03_drift_synthesis.ipynb"
	@echo "the same as a page      $(CURDIR)/$(DEMO)/03_drift_synthesis.html"

test: .venv/test  ## lint, and run every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=60 notebooks

lab: .venv/base  ## open JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: .venv/test  ## run every notebook at its defaults and keep the outputs
	$(BIN)/python tests/run_notebooks.py

lint: .venv/test  ## format and lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("r2l needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/base: .venv/bin/python pyproject.toml
	@echo "installing r2l and what it needs into .venv (some minutes, about 6 GB on Linux)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ .venv/base
