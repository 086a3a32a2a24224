# Every recipe goes through lib/kit/pipeline.py, which decides by content what is stale.
# Relative paths only: the checkout may lie in a folder with spaces. Works with GNU make 3.81.

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PROFILE ?= quick
# Pythons that .venv may be built with, the first that fits: figures were committed with the first.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14 python3 python

# Lessons, then evidence; a copy that a file manager or JupyterLab left beside one is none of them.
NOTEBOOKS := $(shell ls notebooks/*.ipynb notebooks/evidence/*.ipynb 2>/dev/null | LC_ALL=C sed -nE \
	's,^notebooks/((evidence/)?[0-9][0-9]_[a-z0-9_]*)\.ipynb$$,\1,p')
NUMBERS := $(sort $(foreach name,$(notdir $(NOTEBOOKS)),$(firstword $(subst _, ,$(name)))))
NUMBERS += $(patsubst 0%,%,$(NUMBERS))
TARGETS := $(shell sed -n 's/^\([a-z][a-z-]*\):.*/\1/p' Makefile) $(NOTEBOOKS) $(NUMBERS)

# A target that is none is refused before anything runs; make itself takes a folder's name for one.
UNKNOWN := $(filter-out $(TARGETS),$(MAKECMDGOALS))
NEAREST := import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.5))
ifneq ($(UNKNOWN),)
NEAR := $(shell for python in .venv/bin/python $(PYTHONS); do "$$python" -c '$(NEAREST)' \
	'$(subst ','\'',$(firstword $(UNKNOWN)))' $(TARGETS) 2>/dev/null && exit; done)
$(error no target "$(firstword $(UNKNOWN))"$(if $(NEAR),: did you mean "$(NEAR)"?) ("make help" lists all))
endif

# An active environment is used only if it meets the lock; else .venv, which `ready` sets up.
PYTHON := $(shell for folder in "$$VIRTUAL_ENV" "$$CONDA_PREFIX"; do \
	if [ -n "$$folder" ] && "$$folder/bin/python" -I lib/kit/environment.py >/dev/null 2>&1; \
	then echo "$$folder/bin/python"; exit; fi; done; echo .venv/bin/python)
PIPELINE := "$(PYTHON)" -m lib.kit.pipeline

# Kernels take lib from this checkout and are those of this interpreter, not a user's own.
export PYTHONPATH := $(CURDIR)
export JUPYTER_PREFER_ENV_PATH := 1
# Threads that spin at a barrier stop each other as soon as the machine has other work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: $(TARGETS)

help: ## list of targets
	@echo "make TARGET [PROFILE=smoke|quick|full|paper]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'
	@for name in $(NOTEBOOKS); do printf '  %-28s run this notebook if it is stale\n' "$$name"; done
	@echo "  a number, as 3               run all notebooks of this number"

setup: ## build .venv from requirements.lock and check that it works
	@python=; found=; for candidate in $(PYTHONS); do \
	  if said="$$("$$candidate" -I lib/kit/environment.py --python 2>/dev/null)"; \
	  then python="$$candidate"; break; fi; \
	  if version="$$("$$candidate" -V 2>&1)"; \
	  then found="$$found\n  $$candidate: $${said:-$$version}"; fi; done; \
	if [ -z "$$python" ]; then \
	  printf '%b\n' "No Python from 3.11 to 3.14 found: tried $(PYTHONS).$$found" >&2; \
	  echo "Install one and run make again, or name it: make setup PYTHONS=/path/to/python" >&2; \
	  exit 1; fi; \
	set -e; \
	stamp="$$("$$python" -I lib/kit/environment.py --stamp)"; \
	if [ "$$(cat .venv/lock.sha256 2>/dev/null)" != "$$stamp" ] \
	   || ! .venv/bin/python -I lib/kit/environment.py; then \
	  rm -f .venv/lock.sha256; \
	  { .venv/bin/python -I lib/kit/environment.py --python && .venv/bin/python -c 'import pip'; } \
	    >/dev/null 2>&1 || "$$python" -m venv --clear .venv; \
	  .venv/bin/python -m pip install -r requirements.lock; \
	  .venv/bin/python -m pip install --no-deps --no-build-isolation -e .; \
	  .venv/bin/python -I lib/kit/environment.py; \
	  echo "$$stamp" > .venv/lock.sha256; \
	fi; \
	.venv/bin/python -m lib.kit.environment --summary

ready:
	@"$(PYTHON)" -I lib/kit/environment.py >/dev/null 2>&1 || $(MAKE) setup

figures: ready ## run every stale notebook, write figures/, print the scorecard
	$(PIPELINE) run --profile "$(PROFILE)"
	@"$(PYTHON)" -m book.scorecard

$(NOTEBOOKS) $(NUMBERS): ready
	$(PIPELINE) run --profile "$(PROFILE)" $@

lint: ready ## ruff on .py and .ipynb
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .

test: lint ## lint, all notebooks in profile smoke, pytest with nbval
	@$(MAKE) --no-print-directory -j2 pytest-first pytest-second

# Two halves of one thread each fill two cores better than one process of two threads. The first
# runs the notebooks small, and then what reads their outputs.
PYTEST := KIT_PROFILE=smoke TQDM_DISABLE=1 OMP_NUM_THREADS=1 "$(PYTHON)" -m pytest

pytest-first:
	$(PIPELINE) run --profile smoke
	$(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
	  --nbval-kernel-startup-timeout=600 tests/test_results.py $(NOTEBOOKS:%=notebooks/%.ipynb)

pytest-second:
	$(PYTEST) --ignore=tests/test_results.py tests

test-device: ready ## every public call of lib on a pretend accelerator, against the CPU
	$(PYTEST) tests/device/checks.py

gpu: ready ## on one card, within eight minutes: test-device, speeds, memory; writes figures/gpu.json
	"$(PYTHON)" tests/device/gpu.py

wheels: ready ## ask the package index whether every Python of the range can be set up
	"$(PYTHON)" -m pytest -rs tests/wheels.py

refresh: ready ## outputs of the quick profile into notebooks/, then SCORECARD.md and README.md
	$(PIPELINE) refresh
	"$(PYTHON)" -m book.scorecard --write

student: ready ## lessons with answer cells, without solutions, in build/student/; never writes over one
	"$(PYTHON)" -m book.teaching student $(ARGS)

answers: ready ## exercises of the lessons with points, rubric and solutions, in build/answers/
	"$(PYTHON)" -m book.teaching answers $(ARGS)

slides: ready book-extra ## slides of 01, 04 and 06 in build/slides/, which need no network
	"$(PYTHON)" -m book.exports slides $(ARGS)

rehearse: ready ## the paper profile on generated full-size folders, two images, two steps
	"$(PYTHON)" -m lib.diffusion.rehearsal
	$(PIPELINE) rehearse

convert: ready ## a .pt of guided or improved diffusion as a folder; ARGS="FILE FOLDER --help"
	"$(PYTHON)" -m lib.diffusion.adm $(ARGS)

drills: ready ## make every fault happen on small notebooks; the table goes to docs/drills.md
	"$(PYTHON)" tests/drills/drills.py

bench: ready ## every speed claim against its baseline, in one run
	"$(PYTHON)" -m benchmarks

lab: ready ## open working copies of the notebooks in JupyterLab; ARGS="--no-browser --port 9999"
	"$(PYTHON)" -m book.lab $(ARGS)

html: ready ## a page of each notebook in build/html/, every figure with its alternative text
	"$(PYTHON)" -m book.exports html

book-extra:
	@"$(PYTHON)" -c 'import myst_nb, playwright, sphinx_book_theme, sphinx_revealjs; __import__("sphinx-mathjax-offline")' \
	  2>/dev/null || { echo "installing the extra \"book\" of pyproject.toml into $(PYTHON)"; \
	  "$(PYTHON)" -m pip install -q -c requirements.lock --no-build-isolation -e ".[book]"; }

book: ready book-extra ## the book in build/book/html: lessons, evidence, scorecard, pages, API, with search
	"$(PYTHON)" book/prepare.py
	"$(PYTHON)" -m sphinx -q -W --keep-going -c book -d build/book/kept build/book/source build/book/html
	@echo "open build/book/html/index.html"

book-test: book ## look at the book in headless Chromium, which must be installed (Debian: chromium)
	"$(PYTHON)" -m pytest -rs tests/test_book.py tests/test_book_browser.py

scorecard: ready ## write SCORECARD.md and its summary in README.md, print the totals
	@"$(PYTHON)" -m book.scorecard --write

verify: ready ## list what in figures/ is older than its code
	@$(PIPELINE) verify

clean: ## remove cache/ and build/ except training, lab, student, answers: your own work
	if [ -d build ]; then find build -mindepth 1 -maxdepth 1 \
	  ! -name training ! -name lab ! -name student ! -name answers -exec rm -rf {} +; fi
	rm -rf cache .pytest_cache .ruff_cache .hypothesis

models: ready ## train the embedded models and their f_t; FROM=models starts from the shipped weights
	"$(PYTHON)" -m lib.training.train $(if $(FROM),--from "$(FROM)")
	"$(PYTHON)" -m lib.hspace.fits
