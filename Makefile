# The developer's whole interface; `make` alone lists it.
ENGINE ?= vllm
ARGS ?=
PYTEST ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-all soak faults sim demo up bench plots bench-pipeline bench-litellm bench-vllm lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make bench-NAME       One benchmark alone: sse_response open_loop open_streams cancels replicas"
	@echo "                        late_followers recovery log_bytes backlog, and those above"
	@echo "  ENGINE=vllm (default) or scripted; ARGS=... for up; PYTEST=... for the tests"

setup: ## Make .venv, fetch Kafka and the model; quick when done (ENGINE=vllm|scripted)
	@bash requirements/setup.sh $(ENGINE)

$(BIN)/ruff $(BIN)/uv:
	@echo "error: nothing is set up here yet: make setup (ENGINE=scripted leaves out vLLM)" >&2; exit 1

check: $(BIN)/ruff ## Lint, format, strict types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/ruff ## Put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## The everyday tests, real Kafka and real vLLM included
	$(BIN)/python -m pytest -m "not slow and not soak" --numprocesses 2 $(PYTEST)

test-all: setup ## The long ones as well
	$(BIN)/python -m pytest -m "not soak" --numprocesses 2 $(PYTEST)

soak: setup ## Volume runs alone
	$(BIN)/python -m pytest -m soak $(PYTEST)
	$(BIN)/python -m benchmarks.report

faults: setup ## The whole fault matrix on real processes (RESULT=FILE keeps figures; some rows need root, Go, faketime)
	$(BIN)/python -m pytest tests/faults -m "not soak" $(PYTEST)

sim: ENGINE = scripted
sim: setup ## Simulated failures (SEEDS=500; SEED=17: that one, in full; REQUESTS=1000000: so many)
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),500) $(if $(SEED),--seed $(SEED)) \
		$(if $(FIRST),--first $(FIRST)) $(if $(REQUESTS),--requests $(REQUESTS) --seeds 1000000) \
		$(if $(SIZE),--size $(SIZE)) $(if $(RESULT),--result $(RESULT))

demo: setup ## Everything at once: an answer, a small load, a worker killed in the middle of its sentence
	@$(BIN)/inferlog demo --engine $(ENGINE)

up: setup ## Start Kafka, workers and the API (ARGS="--workers 2 --port 8000")
	@$(BIN)/inferlog up --engine $(ENGINE) $(ARGS)

bench: setup ## All benchmarks, quick (about 29 minutes) or FULL=1 (about 80; kept)
	$(BIN)/python -m benchmarks $(if $(FULL),--full) $(ARGS)
	$(if $(FULL),$(BIN)/python -m benchmarks.report && $(MAKE) plots)

plots: $(BIN)/uv ## Draw the pictures of docs/performance.md from the kept results
	bash requirements/bench_environment.sh bench-plots $(BIN)/python
	build/bench-plots/bin/python -m benchmarks.plots

bench-%: ENGINE = scripted
bench-%: setup
	$(BIN)/python -m benchmarks.$* $(ARGS)
	$(BIN)/python -m benchmarks.report

bench-pipeline: ENGINE = scripted
bench-pipeline: setup ## Measure the pipeline; results under benchmarks/results
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.sse_response
	$(BIN)/python -m benchmarks.report

bench-litellm: ENGINE = scripted
bench-litellm: setup ## Measure against LiteLLM's proxy and a plain service (LiteLLM goes to build/)
	$(BIN)/python -m benchmarks.against_litellm
	$(BIN)/python -m benchmarks.report

bench-vllm: ENGINE = vllm
bench-vllm: setup ## Measure against vLLM's own server, by vLLM's own client
	$(BIN)/python -m benchmarks.against_vllm
	$(BIN)/python -m benchmarks.report

lock: $(BIN)/uv ## Compile the pinned sets anew (UPGRADE=1: newest of everything)
	UPGRADE=$(UPGRADE) bash requirements/lock.sh $(BIN)/uv

clean: ## Remove what was made here; downloads in the cache stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
