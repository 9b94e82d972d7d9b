# Two commands: `make repro` runs the chain on real photographs, `make test` runs the tests. Each does its own set-up.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Two spinning OpenMP teams that share a core can be twenty times slower than one.
export OMP_WAIT_POLICY := PASSIVE
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true

# Before any set-up: a name that no preset has.
PRESETS := $(sort $(basename $(notdir $(wildcard presets/*.yaml))))
ifneq ($(strip $(PRESET)),)
ifeq ($(if $(word 2,$(PRESET)),,$(filter $(subst %,\%,$(PRESET)),$(PRESETS))),)
$(error presets has no preset '$(PRESET)'; it has $(PRESETS))
endif
endif

.PHONY: help setup repro search test test-fast test-long attack style lint format ui
help:
	@echo "make repro   the chain: train, analyze, prune, fine-tune, evaluate, report; PRESET=standard"
	@echo "make search  an Optuna study against the baseline of make repro; ARGS=\"--network sid --trials 40\""
	@echo "make test    the tests, style and types"
	@echo "make test-fast  the tests that take a minute together: no chains, studies and hostile inputs"
	@echo "make test-long  what make test leaves out for time: every preset and layout in miniature, two devices, the UI in a browser"
	@echo "make format  puts the code into its form"
	@echo "make attack  hostile inputs, and chains that are killed at random moments; MINUTES=30"
	@echo "make ui      MLflow's pages on http://127.0.0.1:5000"
	@echo "make setup   .venv with the pinned requirements"

# Its programs name the environment's own folder. The chain needs none of them; who activates it does, and after a move
# they are told the new place.
setup: .venv/ready
	@[ -L .venv ] || [ ! -e .venv/bin/activate ] || grep -qF '$(CURDIR)/.venv' .venv/bin/activate || { \
		echo "setup: the folder was moved or copied; the programs of .venv are told its new place"; \
		sed -i '1,2s|[^ "#!]*/\.venv/bin/python|$(CURDIR)/.venv/bin/python|' $$(grep -lI '/\.venv/bin/python' .venv/bin/*); \
		sed -i 's|[^ "=()]*/\.venv\b|$(CURDIR)/.venv|' .venv/bin/activate*; }

# --without-pip: Debian packs ensurepip apart; the machine's own pip installs into the environment from outside.
# The machine's python3 makes it, not the one of an environment that is being replaced.
# --no-compile: half of the time; Python compiles what is imported, once.
.venv/ready: export PATH := $(subst $(CURDIR)/.venv/bin:,,$(PATH))
.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "setup: Python 3.11 or newer is needed; set PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import pip, venv' 2>/dev/null || { echo "setup: $(PYTHON) has no pip or no venv; install python3-pip and python3-venv, or set PYTHON=python3.11" >&2; exit 2; }
	@echo "setup: installing the pinned requirements into .venv (a minute or two)"
	$(PYTHON) -m venv --clear --without-pip .venv
	$(PYTHON) -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@

# PRESET: params.yaml is written from it first. PPID is make: the chain ends with it. exec leaves no shell in between.
repro: setup
	$(if $(PRESET),@python -m stages.preset "$(PRESET)")
	@exec python -m stages.repro $$PPID

search: setup
	@python -m stages.search $(ARGS)

# Three workers on two cores: many tests wait for something.
test: setup style
	python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: setup
	python -m pytest -n 2 --dist loadfile -m "not attack and not long and not slow" $(ARGS)

test-long: setup
	python -m pytest -n 2 -m long

style: setup
	python -m ruff check .
	python -m ruff format --check .

lint: style
	python -m mypy

format: setup
	python -m ruff check --fix .
	python -m ruff format .

# One worker and no job runner: a third of the start-up time and memory.
ui: setup
	@MLFLOW_TRACKING_URI= python -m stages.ui $${PORT:-5000}
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false python -m mlflow ui --host 127.0.0.1 --port $${PORT:-5000} --workers 1 \
		--backend-store-uri sqlite:///$(CURDIR)/mlflow.db

# The slow hostile cases, then chains that are killed at random moments and compared with an undisturbed one.
MINUTES ?= 10
attack: setup
	python -m pytest -m attack tests/hostile
	python tests/attack.py --minutes $(MINUTES)
