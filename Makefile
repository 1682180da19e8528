# make demo   sets up, then trains, switches, exports and measures on bundled images
# make test   sets up, then runs the tests except those marked slow
# make test-all      runs every test
# make lint   style, types, whether the generated pages are up to date, and a strict build of the site
# make docs   writes the generated pages, then builds the documentation into site/
# make bench  measures what docs/performance.md quotes, on an idle machine; then: make docs
# make constraints   records the installed versions as the tested set

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Each test process computes on one thread; as many processes as there are cores, at most four.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))")

.PHONY: setup demo test test-all lint docs site bench constraints

setup: $(READY)

NATIVE := setup.py $(wildcard src/castling/ops/native/csrc/*.* src/castling/ops/native/csrc/*/*)

# Set up once; again only when the requirements or the C++ sources change.
$(READY): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "castling needs Python 3.11 or newer; this is $$($(PYTHON) --version). Say which: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null \
	  || { echo "this Python cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

demo: $(READY)
	$(BIN)/castling demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/python docs/build.py --check
	$(MAKE) --no-print-directory site

docs: $(READY)
	$(BIN)/python docs/build.py
	$(MAKE) --no-print-directory site

# Warnings are errors: a broken link or an unknown name in the API reference fails the build.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	CASTLING=$(BIN)/castling benchmarks/performance.sh

# Names and versions only. Builds for one kind of accelerator come with torch and are left to it.
constraints: $(READY)
	{ echo "# The set of versions that was tested; written by make constraints."; \
	  $(BIN)/python -m pip freeze --exclude-editable --exclude castling --all \
	    | grep -E '^[A-Za-z0-9._-]+==' \
	    | grep -v -i -E '^(nvidia|cuda|triton|pip==|setuptools==)' ; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
