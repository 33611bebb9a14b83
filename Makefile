# `make demo` and `make test` do their whole set-up: a .venv with what each needs.
# `make wheelhouse PYTHON=3.12` names the lab's Python; else PYTHON is the program that makes .venv
LAB_PYTHON := $(if $(filter 3.%,$(PYTHON)),$(PYTHON),3.12)
ifneq ($(filter 3.%,$(PYTHON)),)
override undefine PYTHON
endif
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo web test test-fast check lint types bench constraints wheelhouse release clean

demo: $(VENV)/.labref web
	$(BIN)/labref demo

# one worker more than there are cores; the tests of one file share what they set up, so they stay together, long files first
test: $(VENV)/.test web
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

# other people's scripts for the pages, where Node is there to get them; without them the map is one picture
web: $(VENV)/bin/python
	@$(BIN)/python labref/web/scripts/build_backend.py

# without what trains networks, measures or kills: for the work in between
test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not slow"

check: lint types test-fast

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.ingest --json
	$(BIN)/python -m tests.benchmarks.query --json
	$(BIN)/python -m tests.benchmarks.kill --json

# exact versions with hashes, for every system and Python that labref runs on: of the lab's labref with what a shared
# store needs, as sticks have it, of [train,test,release], and of NVIDIA's libraries
COMPILE = $(BIN)/python -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command "make constraints" --no-emit-index-url --no-emit-find-links pyproject.toml
constraints: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra shared --output-file constraints.txt
	$(COMPILE) --extra train --extra test --extra release --constraint constraints.txt --output-file constraints-test.txt
	$(COMPILE) --extra cuda --extra shared --constraint constraints.txt --output-file constraints-cuda.txt

# a folder for a stick, from which a lab installs without internet: PLATFORM=win_amd64 or manylinux, PYTHON=3.12,
# RUNTIME=cpu or cuda
RUNTIME ?= cpu
wheelhouse: $(VENV)/.release web
	@test -n "$(PLATFORM)" || { echo "make wheelhouse PLATFORM=win_amd64|manylinux [PYTHON=3.12] [RUNTIME=cpu|cuda]"; exit 1; }
	$(BIN)/python deploy/stick/make.py --platform $(PLATFORM) --python $(LAB_PYTHON) --runtime $(RUNTIME)

# wheel and source distribution, tried in empty environments; TRIAL=1 where the commit has no tag, TRAIN=1 with [train] too
release: $(VENV)/.release web
	$(BIN)/python deploy/release.py $(if $(TRIAL),--trial) $(if $(TRAIN),--train)

$(VENV)/.release: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[release]"
	@touch $@ $(VENV)/.labref

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "labref needs Python 3.11, 3.12 or 3.13: install one, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.labref: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

# LOCKED=1 installs the very versions of constraints-test.txt, each file compared with its hash;
# what is not imported need not be compiled
$(VENV)/.test: $(VENV)/bin/python pyproject.toml $(if $(LOCKED),constraints-test.txt)
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r constraints-test.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	$(BIN)/python -m pip check
else
	$(BIN)/python -m pip install --quiet -e ".[train,test,release]"
endif
	@touch $@ $(VENV)/.labref

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
