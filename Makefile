# The two commands of this project: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO := demo-output

.PHONY: demo test lint clean

# The package is installed as users get it, from a wheel of the checkout, and again when a file of it has changed.
# Its dependencies are compiled on all cores, where pip takes one; torch has a file that only later Pythons can compile.
SOURCES := setup.cfg pyproject.toml constraints.txt $(shell find . -path ./$(VENV) -prune -o -path ./build -prune -o \
	-path ./tests -prune -o \( -name '*.py' -o -name '*.json' -o -name '*.tsv' -o -name '*.jinja' -o -name '*.css' -o -name '*.js' \) -print)

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

# Converts a checkpoint and runs the main job on a photograph, offline; see $(DEMO)/summary.md.
demo: $(VENV)/installed
	$(BIN)/python examples/demo.py $(DEMO)

# One process for each core. A file of tests stays in one process, which makes its fixtures once; small files come last.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed
	$(PIP) install -c constraints.txt ruff mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vitrail

clean:
	rm -rf $(VENV) $(DEMO) build vitrail.egg-info
