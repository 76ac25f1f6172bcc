# The commands of this project: `make demo`, `make test`, `make docs`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO := demo-output

.PHONY: demo test lint docs site clean

# The package is installed as users get it, from a wheel of the checkout, and again after one of its files has changed.
# Dependencies are compiled on all cores, where pip uses one; torch contains a file that only later Pythons can compile.
SOURCES := setup.cfg pyproject.toml constraints.txt $(shell find . -path ./$(VENV) -prune -o -path ./build -prune -o \
	-path ./tests -prune -o -path ./docs -prune -o -path ./site -prune -o -path ./$(DEMO) -prune -o \( -name '*.py' -o -name '*.json' -o -name '*.tsv' -o -name '*.jinja' -o -name '*.css' -o -name '*.js' \) -print)

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(PIP) install -c constraints.txt "setuptools>=77" wheel
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/dist .
	$(PIP) install --no-compile -c constraints.txt "$$(ls build/dist/*.whl)[test]"
	$(PIP) install --force-reinstall --no-deps build/dist/*.whl
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	rm -rf build vitrail.egg-info
	touch $@

# Runs the main job on the checkpoint on board, offline; see $(DEMO)/summary.md.
demo: $(VENV)/installed
	$(BIN)/python examples/demo.py $(DEMO)

# One process for each core. A test file stays in one process, which makes its fixtures once; small files come last.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed
	$(PIP) install -c constraints.txt ruff mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vitrail

# Renews the generated parts of README and docs/, then builds the site.
docs: $(VENV)/installed
	$(BIN)/python docs/generate.py
	$(MAKE) site

# Builds the site; a broken link is an error.
site: $(VENV)/installed
	$(PIP) install -c constraints.txt mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(DEMO) build site vitrail.egg-info
