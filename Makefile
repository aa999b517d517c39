# Everything runs in .venv (bench: .venv-bench), which the first target that needs it creates. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.ready-docs
BENCH := .venv-bench/bin
BENCH_READY := .venv-bench/.ready
ARGS ?=
ROW ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-fast lint types wheel smoke omniglot study reproduce bench bench-quick docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

run: $(READY)  ## MAML on sinusoids, about two minutes; settings with ARGS="seed=1"
	$(BIN)/metarun $(ARGS)

test: lint types $(READY)  ## all that CI runs
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not long' tests $(ARGS)

test-long: $(READY)  ## every test, also those of which `make test` has an example
	$(BIN)/pytest -n 2 --dist loadgroup tests $(ARGS)

test-fast: $(READY)  ## the tests of less than ten seconds each
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not slow and not long' tests $(ARGS)

lint: $(READY)  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

wheel: $(READY)  ## dist/metarun-*.whl, and a short run of it in an environment of its own, build/wheel
	rm -rf build/wheel dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/metarun-*.whl
	cd build/wheel && bin/metarun experiment=debug

smoke: $(READY)  ## every algorithm on sinusoids, a few steps
	for algo in maml fomaml reptile imaml; do \
	  $(BIN)/metarun algo=$$algo train.steps=20 test.tasks=20 val.tasks=20 device.compile=false || exit 1; done

omniglot: $(READY)  ## ProtoNet on Omniglot, about a quarter of an hour; another algorithm with ARGS="algo=maml"
	$(BIN)/metarun algo=protonet data=omniglot $(ARGS)

study: $(READY)  ## MAML against iMAML: figure, stability, gap, cost; nine minutes of a core; stopped, it continues
	$(BIN)/metarun experiment=stability_study hydra.run.dir=outputs/study $(ARGS)

reproduce: $(READY)  ## a published row, as ROW=omniglot_5w1s_protonet_cpu; stopped, it continues; ARGS="--seeds 0,1"
	$(BIN)/python -m benchmarks.reproduce "$(ROW)" $(ARGS)

$(BENCH_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	$(BENCH)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $(BENCH_READY)

bench: $(BENCH_READY)  ## speed beside higher, TorchOpt, JAX and a plain loop; sizes of episodes with ARGS="--grid"
	$(BENCH)/python -m benchmarks.peers $(ARGS)

bench-quick: $(BENCH_READY)  ## the main cases of that, in three minutes
	$(BENCH)/python -m benchmarks.peers --quick $(ARGS)

$(DOCS_READY): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(DOCS_READY)

docs: $(DOCS_READY)  ## the documentation as a site, site/index.html; runs the tutorials, about two minutes; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:  ## remove the environments and caches; outputs stay
	rm -rf .venv .venv-bench build dist site .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
