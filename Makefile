PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
FLOORS_PYTHON ?= python3.13
FLOORS := .venv-floors
# What needs neither torch nor real weights.
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py, \
  activations alignment any_convolution apply arrays axes blocks channels consistent \
  cpu_convolutions crossover each_once fit_inputs fit_solving insert interventions lsuv matchers \
  methods mixture network network_libraries network_loops network_modules network_probe nnx \
  optimizers paths plan planning recipes report ridge ridge_head rules_copying rules_library similarity \
  transfer trees variance zoo_order))

.PHONY: help demo test test-all test-floors test-browser parity fuzz notebooks site dist lint types format clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## Real ImageNet weights into a network of no zoo, trained on real photographs.
	$(VENV)/bin/python -m train --source efficientnet_lite0 \
		--target examples.odd_mobilenet:OddMobileNet --dataset elpv \
		--image-size 48 --epochs 5 --batch-size 32 --learning-rate 1e-3

# One process a core, some 2 GB each. The tests of a file share what they compile: they stay together.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

test: lint types  ## Lint, types and the default tests.
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not slow"

test-all: lint types  ## As test, with the slow sweeps.
	$(VENV)/bin/python -m pytest $(PARALLEL)

test-floors: $(FLOORS)/.test  ## The core's tests on the oldest versions supported, those of Colab.
	$(FLOORS)/bin/python -m pytest $(PARALLEL) -m "not slow" $(CORE_TESTS)

test-browser: $(VENV)/.test  ## Pages in Chromium, which the system has to have.
	$(VENV)/bin/python -m pytest -m browser -rs tests/test_html_browser.py

parity: $(VENV)/.test  ## Every architecture against torchvision; rewrites docs/parity.md.
	$(VENV)/bin/python -m pytest -rP -m slow tests/test_parity_sweep.py --parity-table docs/parity.md

fuzz: $(VENV)/.test  ## 102,000 damaged checkpoints of four formats, some 6 minutes.
	FUZZ_EXAMPLES=17000 $(VENV)/bin/python -m pytest -m slow tests/test_state_dicts.py

notebooks: $(VENV)/.notebooks  ## Run the notebooks on a CPU, and store their outputs.
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m notebooks.execute

site: $(VENV)/.docs  ## The documentation as a site, in build/site; a warning is an error.
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs build/site

dist: | $(VENV)/bin/python  ## Wheel and source distribution, in dist.
	$(PIP) install --quiet build
	$(VENV)/bin/python -m build

lint: $(VENV)/.test  ## Formatting and ruff's rules.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(VENV)/.test  ## Static types.
	$(VENV)/bin/pyright

format: $(VENV)/.test  ## Rewrite the files as lint wants them.
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

# torch goes first and alone, pinned: a later resolution then finds it installed and leaves it. Most
# of its files are never imported: compiling them all would take as long as all else here.
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --no-compile --constraint constraints.txt torch
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.notebooks: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[notebooks]'
	@touch $@

$(FLOORS)/.test: pyproject.toml constraints-floors.txt
	$(FLOORS_PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint constraints-floors.txt --editable '.[test-core]'
	@touch $@

clean:  ## Remove the environments and all caches.
	rm -rf $(VENV) $(FLOORS) .cache .pytest_cache .ruff_cache .hypothesis build dist
