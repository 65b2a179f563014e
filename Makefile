# Each target sets up .venv by itself when it is missing, or older than the files that say what belongs into it.
# The only things needed beforehand are make and Python 3.11 or newer: make demo PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
MANIFESTS := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
PLUGINS := $(patsubst plugins/%/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
TESTS ?= tests
# Families and layers import nothing that a lane could hide, which the test of the index shows in every lane by building one network of each
# family, and a manifest's networks are all imported by the test of its task: once is enough for their arithmetic, for building the others,
# and for the rules of the layout, which are read from the sources.
NO_LANE := tests/core/backbones tests/core/layers tests/core/test_architecture.py tests/contract/test_backbones.py
NOT_IN_LANE := not TestModels and not test_the_index_is_fresh

.PHONY: demo test lanes lint bench clean

demo: .venv/.medseg
	$(BIN)/cnnkit run medseg --example -o out/medseg

# Seen once: a library of the test tools left the C locale switched, and later tests wrote text as ASCII.
test: export PYTHONUTF8 := 1
test: .venv/.all
	$(BIN)/python -m pytest $(TESTS) -n 2 --dist worksteal --durations 8
	$(BIN)/python tools/lanes.py --here -- -n 2 --dist worksteal -k "$(NOT_IN_LANE)" $(foreach path,$(NO_LANE),--ignore=$(CURDIR)/$(path))

lint: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.all
	$(BIN)/python tests/bench/run.py

clean:
	rm -rf .venv out runs build

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cnnkit needs Python 3.11 or newer; type: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# The newcomer's environment: the core and one plugin, as a user would install them.
.venv/.medseg: .venv/.python pyproject.toml constraints.txt plugins/medseg/pyproject.toml
	@echo "Installing cnnkit and cnnkit-medseg into .venv (about 5 GB, most of it PyTorch)"
	$(PIP) -e . -e plugins/medseg
	@touch $@

# Everything: all plugins, the optional parts, and what the tests compare against.
.venv/.all: .venv/.python $(MANIFESTS)
	@echo "Installing cnnkit, all plugins and the test tools into .venv"
	$(PIP) -e '.[train,onnx,plot,test,lint]' $(foreach name,$(PLUGINS),-e 'plugins/$(name)[test]')
	@touch $@ $(foreach name,$(PLUGINS),.venv/.$(name))
