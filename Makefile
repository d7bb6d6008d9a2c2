# `make` lists the targets. Everything below `install` runs in .venv, which `install` creates.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
STUDIES ?=

VENV := .venv
RUN := $(VENV)/bin/python
# Errors are still shown. Most files are never imported; the others are compiled when they are.
PIP := $(RUN) -m pip -qq --disable-pip-version-check install --no-compile
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test coverage bench lint format reproduce base clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12  the Python that makes .venv (3.11 to 3.13; default python3)"
	@echo "  JOBS=4             processes of 'make test' and 'make reproduce' (default 2)"
	@echo "  STUDIES='rank'     some of the studies of 'make reproduce'"
	@echo "  ARGS='-k sampler'  more arguments for pytest, or for the suite of 'make bench' (--quick)"

install: $(INSTALLED) ## Create .venv with the pinned versions (2 to 4 minutes, 2 GB)

# Redone only when the dependencies change. torch comes first and alone, so that the build that this
# machine's package index offers (CPU or CUDA) is settled before anything else asks for it.
$(INSTALLED): pyproject.toml constraints.txt standins.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "constraints.txt needs Python 3.11 to 3.13; $$($(PYTHON) --version 2>&1) found." \
	       "Choose one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[dev]'
	@$(PIP) --no-deps -r standins.txt
	@touch $@

demo: install ## Train the tiny replica's LoRA, evaluate it, say where the page is
	$(RUN) train.py experiment=tiny_vta
	$(RUN) evaluate.py experiment=tiny_vta
	@page=$$(find outputs -name toy_suite.html -exec ls -t {} + | head -n 1); \
	  test -n "$$page" || { echo "evaluate.py wrote no toy_suite.html below outputs/" >&2; exit 1; }; \
	  echo "The page: $$page"

# A file stays with one process, for what its tests share; tests/conftest.py says which come first.
test: install ## Run the tests in JOBS processes
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(RUN) -m pytest \
	  -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: ## The tests with the lines of pusa/ that none of them runs; takes a quarter longer
	$(MAKE) --no-print-directory test ARGS='--cov --cov-report=term --no-cov-on-fail $(ARGS)'

bench: install ## Measure speed and memory beside diffusers, write docs/performance.md (90 min; ARGS=--quick 2 min)
	$(RUN) -m benchmarks.suite $(ARGS)

lint: install ## Check style, format and types
	$(RUN) -m ruff check --no-cache .  # the cache goes stale when a first-party module appears
	$(RUN) -m ruff format --check .
	$(VENV)/bin/basedpyright

format: install ## Mend what ruff can mend
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

reproduce: install ## Train and measure the studies of docs/replica.md, JOBS at once; goes on where it stopped
	$(VENV)/bin/pusa reproduce --jobs $(JOBS) $(STUDIES)

# The parts as remade, in place of the committed ones in data/replica.
REMADE := model.vae=outputs/tiny_vae/vae model.text_encoder=outputs/tiny_text_encoder

base: install ## Remake the committed codec, text encoder and base from nothing (2 h)
	$(RUN) train.py experiment=tiny_vae
	$(VENV)/bin/pusa tiny-text-encoder outputs/tiny_text_encoder
	$(RUN) train.py experiment=tiny_base $(REMADE)
	$(RUN) train.py experiment=tiny_base_long $(REMADE)
	$(RUN) train.py experiment=tiny_vta name=reproduced $(REMADE) \
	  model.weights=outputs/tiny_base_long/model.safetensors
	$(RUN) evaluate.py experiment=tiny_vta name=reproduced $(REMADE) \
	  model.weights=outputs/tiny_base_long/model.safetensors

clean: ## Remove caches and builds; keeps .venv and outputs
	rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis *.egg-info
	find pusa tests -name __pycache__ -type d -prune -exec rm -rf {} +
