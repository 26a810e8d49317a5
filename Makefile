# Everything a person or CI does here. Needs python3 (3.11 or newer) and make; the rest is set up by the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
GENERATOR := .venv-generate/bin
PROTOS := $(shell find proto -name '*.proto' | LC_ALL=C sort)
SERVICES := $(filter %_service.proto,$(PROTOS))
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo run test check fmt lint types imports buf generate drift docs docs-check bench simulate model pins accept-api clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tandem needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	@echo "setting up .venv (once; about half a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip -qq install --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv-generate/.ready: Makefile
	@echo "setting up .venv-generate (protoc and its plugins) ..."
	@test -x $(GENERATOR)/python || $(PYTHON) -m venv .venv-generate
	@$(GENERATOR)/python -m pip -qq install --disable-pip-version-check \
	  grpcio-tools==1.81.1 grpcio==1.81.1 protobuf==6.33.6 mypy-protobuf==5.1.0 types-protobuf==7.35.1.20260906
	@touch $@

setup: .venv/.ready ## make the venv that everything else uses

demo: .venv/.ready ## start a fleet, stream an answer through a pair of each handshake, stop it again
	@$(BIN)/tandem demo

run: .venv/.ready ## the same fleet, kept up, with lines to paste (Ctrl-C ends it)
	@$(BIN)/tandem demo --keep

test: .venv/.ready ## all tests: unit, contract, simulation, end to end
	@$(PYTEST) -n 2 --dist loadscope tests

check: lint types imports buf drift docs-check test ## what CI runs

fmt: .venv/.ready ## format code and protos
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/buf format -w

lint: .venv/.ready ## ruff: format and rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: .venv/.ready ## mypy --strict
	@$(BIN)/mypy

imports: .venv/.ready ## the rooms' import rules
	@$(BIN)/lint-imports --no-cache

buf: .venv/.ready ## proto style, and no breaking change against the accepted image
	@$(BIN)/buf lint && $(BIN)/buf format -d --exit-code && $(BIN)/buf breaking --against proto/image.binpb

generate: .venv-generate/.ready ## write generated/ from proto/
	@rm -rf generated/tandem && mkdir -p generated
	@$(call generate_into,generated)

drift: .venv-generate/.ready ## fail if generated/ is not what proto/ gives
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate_into,"$$out") && \
	  diff -r -x __pycache__ "$$out/tandem" generated/tandem && echo "generated/ is what proto/ gives"

# Messages of all files, then stubs of service files only (nouns would give empty modules).
define generate_into
export PATH="$$PWD/$(GENERATOR):$$PATH" && \
python -m grpc_tools.protoc -Iproto --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS) && \
python -m grpc_tools.protoc -Iproto --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICES) && \
touch $(1)/tandem/v1/py.typed $(1)/tandem/engine/v1/py.typed
endef

docs: .venv/.ready ## write docs/{api,errors,settings}.md from the code
	@$(BIN)/python docs/_generate

docs-check: .venv/.ready ## fail if those pages are not what the code gives
	@$(BIN)/python docs/_generate --check

bench: .venv/.ready ## measure health latency under load (45 s)
	@$(BIN)/python bench/health_latency.py

accept-api: .venv/.ready ## take the present schema as the base of `buf breaking`
	@$(BIN)/buf build --exclude-source-info -o proto/image.binpb

SEEDS ?= 0:2000
simulate: .venv/.ready ## simulation over many seeds: make simulate SEEDS=0:2000
	@$(BIN)/python -m tandem_router.testing.simulation --seeds $(SEEDS)

model: ## train the demo model again (needs torch; minutes)
	@test -x .venv-model/bin/python || $(PYTHON) -m venv .venv-model
	@.venv-model/bin/python -m pip -qq install --disable-pip-version-check -e '.[model]'
	@.venv-model/bin/python -m tandem_engine.demo.train --out src/tandem_engine/demo/model

pins: ## write constraints.txt from the newest releases that pyproject.toml allows
	@rm -rf .venv && $(PYTHON) -m venv .venv && $(BIN)/python -m pip -qq install --disable-pip-version-check -e '.[dev]'
	@{ echo "# Pins of everything the venv holds; 'make pins' writes it anew. No index address, no torch (make model has its own)."; \
	  $(BIN)/python -m pip freeze --exclude-editable --all | grep -vE '^(pip|setuptools)='; } > constraints.txt

clean: ## remove what the targets made
	@rm -rf .venv .venv-generate .venv-model .mypy_cache .ruff_cache .pytest_cache .hypothesis .run
