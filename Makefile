# `make demo` shows the main job, `make test` runs the tests; `make help` lists the rest.
# Needs Python 3.10 or newer and make; everything else goes into the folders .venv and .uv.

PYTHON ?= python3
VENV   ?= .venv
# Test processes. Each keeps to one thread of its own.
JOBS   ?= 2

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
BOOT  := .uv

.DEFAULT_GOAL := install
.PHONY: install test lint format demo bench constraints clean help

install: $(STAMP) ## install the package and its tools into .venv (skipped while nothing changed)

# src is not listed: the installation is editable, so a changed source file needs no new one.
$(STAMP): pyproject.toml constraints.txt src/softcpt/_version.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "softcpt needs Python 3.10 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)"; \
	  echo "Name another one: make PYTHON=/path/to/python3.12"; exit 1; } >&2
	@uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! "$$uv" --version >/dev/null 2>&1; then \
	  uv=$(BOOT)/bin/uv; \
	  if ! "$$uv" --version >/dev/null 2>&1; then \
	    echo "Fetching uv (the installer) into $(BOOT) ..."; \
	    rm -rf $(BOOT); \
	    $(PYTHON) -m venv $(BOOT) || { \
	      echo "'$(PYTHON) -m venv' does not work here; install your system's package for it (Debian: python3-venv)." >&2; exit 1; }; \
	    $(BOOT)/bin/python -m pip install --quiet --disable-pip-version-check uv || exit 1; \
	  fi; \
	fi; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  "$$uv" venv --quiet --clear --no-python-downloads --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV) || exit 1; \
	fi; \
	echo "Installing into $(VENV); the first time fetches PyTorch, which is large ..."; \
	"$$uv" pip install --compile-bytecode --python $(BIN)/python --constraints constraints.txt \
	  --build-constraints constraints.txt --editable '.[dev]'
	@touch $@

test: $(STAMP) ## install, then run the tests
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP) ## style, formatting, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP) ## install, then compare four methods on drawn pictures; writes demo/report.html
	@$(BIN)/softcpt demo

bench: $(STAMP) ## run all benchmarks of speed and memory (QUICK=1: each under a minute)
	@for case in general-10 fashion-20 class-specific; do for script in text_step train scale; do \
	  echo "== $$script $$case"; $(BIN)/python benchmarks/$$script.py --case $$case $(if $(QUICK),--quick) || exit 1; \
	done; done

# The graphics libraries that PyTorch brings along are pinned by PyTorch itself and left out.
constraints: $(STAMP) ## write constraints.txt anew, with uv on the path (UPGRADE=1: newer versions)
	@{ sed -n '/^#/p' constraints.txt; \
	  echo 'hatchling' | uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-annotate --no-header \
	    $(if $(UPGRADE),,--constraints constraints.txt) pyproject.toml - \
	  | grep -vE "^(nvidia-|cuda-|triton)|== 'emscripten'" | sed -E "s/ (;|and) sys_platform != 'emscripten'//"; \
	} > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove everything that was installed or built here
	rm -rf $(VENV) $(BOOT) build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14
