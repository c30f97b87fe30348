# The two commands, each of which does its own set-up:
#   make run [RECIPE=resnet50-cifar10] [DATA=DIR]   the course: four notebooks, a two-process run, the report
#   make test                                       ruff and pytest
RECIPE ?= resnet50-digits
DATA ?= data
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OLDEST := .venv-oldest

.PHONY: run test test-labs test-courses test-oldest test-faults bench notebooks lab-notebooks clean

run: $(READY)
	$(BIN)/ddp-workbook run --recipe $(RECIPE) --data-dir $(DATA)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 --dist loadfile

# Every answer to every lab, right and wrong; the lab notebooks; a lab in JupyterLab. LAB_TRIES=20 for 20 times each.
test-labs: $(READY)
	LAB_TRIES=$${LAB_TRIES:-1} $(BIN)/pytest tests/labs

# The course of other networks than that of `make test`, shortened: all four notebooks and the report.
test-courses: $(READY)
	$(BIN)/pytest tests/courses

# The same tests on the oldest versions that pyproject.toml allows. With PYTHON=python3.11 it is the oldest of all.
test-oldest: $(OLDEST)/ready
	$(OLDEST)/bin/pytest

# Runs that are killed, stopped, cut off and starved of disk, many times over: most of an hour. FAULT_TRIES=5 for a few.
test-faults: $(READY)
	FAULTS=full $(BIN)/pytest -s tests/faults

# The training loop against the bare step, and against what people use instead, with and without torch.compile: two to five
# hours, alone on the machine, please.
bench: $(READY)
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python bench/training_loop.py
	$(BIN)/python bench/compare.py

# After changing a notebook: run all four on their own defaults (CIFAR-10) and keep the outputs.
notebooks: $(READY)
	$(BIN)/ddp-workbook run --in-place

# After changing a lab or its notebook: with stubs in the cells, and without your own answers and progress.
lab-notebooks: $(READY)
	$(BIN)/python -c 'from pathlib import Path; from ddp_workbook.course.runner import *; run_lab_notebooks(Path())'

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(OLDEST)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) *.egg-info .pytest_cache .ruff_cache .hypothesis
