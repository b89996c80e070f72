# Two commands are enough on a fresh machine: `make lab` to read, `make test` to check.
# They need python3 (3.11 or newer, with venv), make and git; no root, no compiler. A second run installs nothing.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help lab fetch test test-unit test-notebooks notebooks bench book lint clean distclean

EXTRAS := test,peers,export,book,cluster
PINS   := pyproject.toml constraints.txt Makefile

# PyPI's torch for Linux brings several GB of GPU libraries that nothing here needs. To take the CPU build instead, name
# the index that PyTorch's install page gives for it: make TORCH_INDEX=ADDRESS lab. It is asked for torch alone.
TORCH_INDEX ?=

help:
	@echo "make lab        open the notebooks (makes $(VENV), installs, fetches the model, starts JupyterLab)"
	@echo "make test       install the test tools and run everything that CI runs"
	@echo "make notebooks  rebuild notebooks/*.ipynb from notebooks/src/*.py"
	@echo "make bench      measure speed beside the peers; writes benchmarks/results/"
	@echo "make book       build the static edition into book/"
	@echo "make clean      remove caches and build outputs (distclean: $(VENV) as well)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Frugal needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 lab" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv (as root), then run this again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	@touch $@

$(VENV)/.lab: $(PINS) | $(VENV)/.torch
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(PINS) | $(VENV)/.torch
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@ $(VENV)/.lab

# nbgrader and otter bring JupyterLab extensions of their own, so the tests of graded copies get an environment on top
# of this one: it sees all packages here, and JupyterLab here sees none of its.
GRADING := $(VENV)/grading
$(VENV)/.grading: $(VENV)/.test
	$(BIN)/python -m venv --without-pip $(GRADING)
	$(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))' > "$$($(GRADING)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/beside.pth"
	$(BIN)/python -m pip --disable-pip-version-check --python $(GRADING)/bin/python install -c constraints.txt -e ".[grading]"
	@touch $@

# Without the model the recorded figures still work, so a missing network does not keep JupyterLab shut.
lab: $(VENV)/.lab
	@$(BIN)/frugal fetch || echo "Going on without the model: recorded figures work, live runs will not." >&2
	$(BIN)/frugal lab $(LAB_ARGS)

fetch: $(VENV)/.lab
	$(BIN)/frugal fetch

# One thread a worker: two workers fill two cores, and threads that wait for each other's turn are slow.
# Both halves always run, so that one failure does not hide another; the exit code is that of the worse one.
test: $(VENV)/.test $(VENV)/.grading
	$(BIN)/frugal fetch
	@rc=0; \
	$(MAKE) --no-print-directory test-unit || rc=1; \
	$(MAKE) --no-print-directory test-notebooks || rc=1; \
	exit $$rc

test-unit: $(VENV)/.test
	OMP_NUM_THREADS=1 FRUGAL_TEST_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) tests

# One kernel a notebook, as a reader has it; found by folder. The annotation checks stay off: readers run without them.
test-notebooks: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts= -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300 -ra notebooks

notebooks: $(VENV)/.test
	$(BIN)/python -m frugal.explore.notebooks

bench: $(VENV)/.test
	$(BIN)/frugal fetch
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/run.py

book: $(VENV)/.test
	$(BIN)/frugal book --out book

lint: $(VENV)/.test
	$(BIN)/ruff check lib tests recipes benchmarks

clean:
	rm -rf build dist book out .pytest_cache .ruff_cache .hypothesis .jupyter_cache jupyter_execute
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
