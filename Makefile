# Each target makes what it needs. The environment lies in .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# The last section that `make demo` runs; "Next" is the lesson's last.
UNTIL ?= The matrix
# What `make explorer` serves, where, and to how many at a time: each takes 1 GB and more.
NOTEBOOK ?= 02_differentiable_processing
IP ?= 127.0.0.1
PORT ?= 8866
VISITORS ?= 3
# What of the benchmark goes into the README: a regular expression on "group / contender".
BENCH ?= ^(GPU|epoch of Small|(batch of 8|frame of 2 MP).* / (?!r2l compiled))
# What `make experiments` runs.
EXPERIMENTS ?= $(sort $(wildcard notebooks/experiments/*paper_*.yaml))
# What was tested is installed; empty for the newest.
LOCK ?= constraints.txt

# So many processes where pytest-xdist is there; asked when a recipe runs, since it may be installed by then.
spread = $(shell $(BIN)/python -c 'import xdist' 2>/dev/null && echo '-n $(1)')
# What the tests of a file share is made once; tests/conftest.py puts the long ones first.
BY_FILE := --dist loadfile --no-loadscope-reorder
# They wait now and then, for a server or for what they killed: three processes for two cores, 1 to 3 GB each.
PROCESSES ?= 3
TESTS = -p tools.early $(call spread,$(PROCESSES) $(BY_FILE))

# Threads that wait should sleep: on few cores, waiting in circles costs other work several times its time.
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true
# Where a container forbids it, each of some hundred processes compiles all of torch and mlflow anew: ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check tests unit tiny nbval memory browser torture audit bench scaling lab explorer lint notebooks index answers solutions experiments site slides bundle lock help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: .venv/base  ## run the third notebook up to its matrix; print that and where everything lies
	@mkdir -p $(DEMO)
	@$(BIN)/python -m tools.until notebooks/03_drift_synthesis.ipynb '$(UNTIL)' > $(DEMO)/03_drift_synthesis.ipynb
	$(BIN)/papermill $(DEMO)/03_drift_synthesis.ipynb $(DEMO)/03_drift_synthesis.ipynb -p OUTPUT $(DEMO) --no-log-output
	@$(BIN)/jupyter nbconvert --log-level ERROR --to html $(DEMO)/03_drift_synthesis.ipynb
	@echo
	@cat $(DEMO)/matrix.txt
	@echo
	@echo "picture of the matrix   $(CURDIR)/$(DEMO)/matrix.png"
	@echo "executed notebook       $(CURDIR)/$(DEMO)/03_drift_synthesis.ipynb"
	@echo "the same as a page      $(CURDIR)/$(DEMO)/03_drift_synthesis.html"
	@echo "the rest of the lesson  make lab; without looking: make demo UNTIL=Next"

# One pool for all of it: what waits for a server or a page leaves its core to the others until the end.
test: check  ## lint, and run every test and every notebook, in a browser too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -m "not long" $(NBVAL) $(LESSONS) tests benchmarks r2l

check: .venv/test  ## lint, floors and circles of imports, how thin the package is; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports & imports=$$!; $(BIN)/python -m tools.house && wait $$imports

# One thread a process: the processes have the cores.
tests: .venv/test  ## `unit` and `tiny` in one go
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -m "not browser and not long"

unit: .venv/test  ## the quick tests: no notebooks, no browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -m "not slow and not notebook and not browser and not long"

tiny: .venv/test  ## the slow tests, and each notebook through papermill at tiny parameters
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -m "slow or notebook"

# A notebook alone on both cores is little faster than on one: two run side by side, the long ones first.
LONG := $(foreach n,04 05 03,$(wildcard notebooks/$(n)_*.ipynb))
LESSONS := $(LONG) $(filter-out $(LONG),$(wildcard notebooks/[0-9]*.ipynb))
NBVAL := -p tools.budget --nbval-lax --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=60
nbval: .venv/test  ## each notebook at its defaults; what it took; 2 GB at most
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(call spread,2 $(BY_FILE)) $(NBVAL) $(LESSONS)

memory: nbval

browser: .venv/test  ## the notebooks in JupyterLab and Voila, driven in Chromium; keeps screenshots
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(call spread,2) tests/test_browser.py

# Out of `make test` since it takes about half an hour.
torture: .venv/test  ## 10,000 damaged files, 100 kills, a sweep with very bad days
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/torture/torture_*.py

# Strict: what can't be looked up, as without a network, is a failure too.
audit: .venv/base  ## known vulnerabilities in what is installed, every version of it; needs a network
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv/audit/frozen.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/frozen.txt

bench: .venv/test  ## speed beside the peers, into the README's table; some minutes
	$(BIN)/python -m benchmarks --rounds 3 --only '$(BENCH)' --readme README.md

scaling: .venv/test  ## a sweep of 24 runs with one worker and with two
	$(BIN)/python -m tools.scaling

lab: .venv/base  ## open JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

explorer: .venv/explorer  ## serve a lesson's sliders as a page: make explorer NOTEBOOK=04_drift_forensics VISITORS=3
	@$(BIN)/python -m tools.explorer $(NOTEBOOK) --ip $(IP) --port $(PORT) --visitors $(VISITORS)

notebooks: .venv/test  ## run every notebook at its defaults and keep the outputs
	$(BIN)/python tests/run_notebooks.py
	$(BIN)/python -m tools.index

index: .venv/test  ## bring the index in notebooks/README.md up to date
	$(BIN)/python -m tools.index

answers: .venv/test  ## the answers of the lessons that take minutes to show
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long tests/test_answers.py

solutions: .venv/test  ## the lessons with their answers filled in, for teachers: into solutions/
	$(BIN)/python -m tools.solutions

site: .venv/docs  ## the lessons, the command line and the docstrings as pages: build/site/index.html
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -b html -c docs -d build/doctrees . build/site
	@echo "$(CURDIR)/build/site/index.html"

slides: .venv/docs  ## the lessons as slides with reveal.js beside them: build/slides/index.html
	$(BIN)/python -m tools.slides

# For the platform of the machine that makes it; Linux's PyTorch brings CUDA and makes it some GB large.
bundle: .venv/base  ## what a room without a network needs, in one folder: build/bundle
	rm -rf build/bundle && mkdir -p build/bundle
	$(BIN)/python -m pip wheel --quiet --wheel-dir build/bundle/wheels $(addprefix --constraint ,$(LOCK)) '.[all,explorer]' \
	  || $(BIN)/python -m pip wheel --quiet --wheel-dir build/bundle/wheels '.[all,explorer]'
	cp -r notebooks docs README.md LICENSE tools/room/* build/bundle
	@du -sh build/bundle

experiments: .venv/base  ## run the full experiments, notebooks/experiments/*paper_*.yaml: hours, a GPU, the real data
	$(BIN)/r2l sweep $(EXPERIMENTS)

lint: .venv/test  ## format and lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# uv installs in half the time: the one that is there, else one in .venv.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("r2l needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	command -v uv > /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true

UV = $(or $(shell command -v uv),$(BIN)/uv)
# Some networks know pip's index only, and not in these versions.
install = $(UV) pip install --quiet --python $(BIN)/python $(addprefix --constraint ,$(LOCK)) --editable '.[$(1)]' \
	  || { echo "uv could not: pip installs the newest versions that it finds"; \
	       $(BIN)/python -m pip install --quiet --editable '.[$(1)]'; }

.venv/base: .venv/bin/python pyproject.toml $(LOCK)
	@echo "installing r2l and what it needs into .venv (some minutes, about 6 GB on Linux)"
	$(call install,all)
	@touch $@

.venv/explorer: .venv/bin/python pyproject.toml $(LOCK)
	$(call install,explorer)
	@touch $@ .venv/base

.venv/docs: .venv/bin/python pyproject.toml $(LOCK)
	$(call install,docs)
	@touch $@ .venv/base

.venv/test: .venv/bin/python pyproject.toml $(LOCK)
	$(call install,test)
	@touch $@ .venv/base .venv/explorer .venv/docs

lock:  ## write constraints.txt anew: the newest versions of everything, for every platform
	uv pip compile --universal --upgrade --python-version 3.11 --extra test --no-header --no-annotate \
	  --no-emit-index-url --quiet --output-file constraints.txt pyproject.toml
