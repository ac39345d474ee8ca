# make demo: set up, export the nano checkpoint, ask it about a picture.
# make test: set up, lint, type-check and test.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# What runs on a device, with Python 3.10 and without torch.
SLIM := $(addprefix foveate/,runtime families bundle commands export/tensorrt cli.py errors.py terminal.py atomic_write.py machine.py)

.PHONY: demo test lint setup clean

demo: $(VENV)/.export
	$(BIN)/foveate demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 $(SLIM)

setup: $(VENV)/.dev

$(VENV)/.export: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Foveate exports with Python 3.11 or newer: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[export]'
	touch $@

$(VENV)/.dev: $(VENV)/.export
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
