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
is311 = $(1) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
# The first of these that is one; else the name that the complaint shall have.
PYTHON311 ?= $(firstword $(foreach name,python3.11 $(PYTHON),$(shell $(call is311,$(name)) && echo $(name))) python3.11)

.PHONY: help setup demo run test test-engines mlx check fmt lint types imports buf generate drift docs docs-check bench simulate model pins accept-api clean

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

test: .venv/.ready mlx ## all tests: unit, contract, simulation, end to end, a real MLX
	@$(PYTEST) -n 2 --dist loadscope -o faulthandler_timeout=180 tests

test-engines: .venv/.ready .venv-vllm/.ready .venv-mlx/.ready ## unmodified vLLM (alone, and a pair over NIXL) and MLX; needs Python 3.11
	@$(PYTEST) -m "vllm or mlx" --durations 10 tests/real_engines
	@if unshare -rn ip link set lo up 2>/dev/null; then unshare -rn sh -c 'ip link set lo up && $(PYTEST) -m mooncake tests/real_engines'; \
	else echo "Mooncake listens on every interface, and this machine gives it no network of its own: its tests are skipped"; fi

# The real engines' own venvs. Their wheels for CPUs exist for Python 3.11 only.
NO_PYTHON311 = "no Python 3.11 at $(PYTHON311), which real engines need; set PYTHON311=/path/to/python3.11"

.venv-vllm/.ready .venv-mlx/.ready: .venv-%/.ready: tests/real_engines/requirements-%.txt
	@$(call is311,$(PYTHON311)) || { echo $(NO_PYTHON311); exit 1; }
	@echo "setting up .venv-$* ..."
	@test -x .venv-$*/bin/python || $(PYTHON311) -m venv .venv-$*
	@.venv-$*/bin/python -m pip -qq install --disable-pip-version-check --no-deps $(if $(filter mlx,$*),--no-compile) -r $<
	@touch $@

mlx: # what the tests of MLX need, where there is a Python 3.11; elsewhere they are skipped
	@if $(call is311,$(PYTHON311)); then $(MAKE) .venv-mlx/.ready; else echo $(NO_PYTHON311)": the tests of MLX are skipped"; fi

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
	@rm -rf .venv .venv-generate .venv-model .venv-vllm .venv-mlx .mypy_cache .ruff_cache .pytest_cache .hypothesis .run
