# Everything runs in an environment of its own, made on first use and again when what it was made from changes.

VENV ?= .venv
PYTHON ?=
ARGS ?=
JOBS ?= 2

bin := $(VENV)/bin
evidence := VENV='$(abspath $(VENV))' tools/run_evidence

.DEFAULT_GOAL := help
.PHONY: help environment test test-vllm check params wheel demo models evidence soak lock clean distclean

help: ## List the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 16
	@echo "Variables: VENV=.venv, PYTHON=(3.11 or newer), ARGS=(more arguments for pytest), JOBS=2 (tests at once)"

environment: ## Install the pinned dependencies into VENV, unless that is done
	@VENV='$(VENV)' PYTHON='$(PYTHON)' .ci/environment

test: environment ## Run the tests
	$(bin)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-vllm: environment ## Run the tests of the vLLM backend, in an environment of its own
	VENV='$(VENV)' .ci/test-vllm $(ARGS)

check: environment ## Check style, format and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

params: environment ## Write params.yaml again after a setting or its text has changed
	$(bin)/python -m thinkjepa.pipeline.project.params >params.yaml.new
	mv params.yaml.new params.yaml

wheel: environment ## Build the wheel into dist/
	rm -rf build
	$(bin)/python -m build --wheel --no-isolation
	rm -rf build

demo: environment ## Run the whole pipeline on sample videos with untrained models, in demo/
	$(bin)/thinkjepa-sample demo demo

models: environment ## Train the sample's models in models/, an hour (needs the extra `sample` and a GL library)
	VENV='$(VENV)' tools/train_encoder models/encoder
	VENV='$(VENV)' tools/train_thinker models/thinker

evidence: environment ## Show on the sample whether a thinker helps: hours, in evidence/, goes on where it stopped
	$(evidence) setup --project evidence
	cd evidence && PATH='$(CURDIR)/tools':$$PATH VENV='$(abspath $(VENV))' '$(abspath $(VENV))/bin/dvc' repro

soak: environment ## Run the long tests
	$(bin)/python -m pytest -m soak --timeout 3600 $(ARGS)

lock: ## Write requirements.lock from pyproject.toml and constraints.txt (needs uv and a network)
	uv pip compile pyproject.toml --universal --python-version 3.11 --extra dev --constraint constraints.txt \
		--generate-hashes --no-annotate --quiet --custom-compile-command 'make lock' --output-file requirements.lock

clean: ## Remove what tests, checks and builds leave behind; demo/ stays, it may hold sweeps
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './$(VENV)/*' -not -path './.venv*/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf '$(VENV)' .venv-vllm
	@if [ -e demo ]; then echo "demo/ is kept with its runs and sweeps: rm -rf demo removes it"; fi
