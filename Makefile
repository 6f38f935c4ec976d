# make demo: the whole path on this machine; make test: what belongs before a commit; make test-all: everything. All install
# first. PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: install demo test test-all check lint examples mutants clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m jobs demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow or each_commit'

test-all: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test-all

# what `submit` renders for each way onto a cluster, anew
examples: $(INSTALLED)
	$(BIN)/python infra/examples/render.py

# how many deliberate faults in the core the tests notice; takes long
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

clean:
	rm -rf $(VENV) *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants
