# The commands of this project: `make demo`, `make test`, `make docs`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO := demo-output

.PHONY: demo test test-oldest test-newest test-quantization lint docs site clean

# The package is installed as users get it, from a wheel of the checkout, and again after one of its files has changed.
# Dependencies are compiled on all cores, where pip uses one; torch contains a file that only later Pythons can compile.
SOURCES := setup.cfg pyproject.toml $(CONSTRAINTS) $(shell find . -path './.venv*' -prune -o -path ./build -prune -o \
	-path ./tests -prune -o -path ./docs -prune -o -path ./site -prune -o -path ./$(DEMO) -prune -o \( -name '*.py' -o -name '*.json' -o -name '*.tsv' -o -name '*.jinja' -o -name '*.css' -o -name '*.js' \) -print)

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(PIP) install -c $(CONSTRAINTS) "setuptools>=77" wheel
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/dist .
	$(PIP) install --no-compile -c $(CONSTRAINTS) "$$(ls build/dist/*.whl)[test]"
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

# The same with the oldest and the newest releases that setup.cfg allows, each in a separate environment (.venv-oldest, .venv-newest).
test-oldest test-newest: test-%:
	$(MAKE) test VENV=.venv-$* CONSTRAINTS=constraints-$*.txt

# Quantized models. torchao and bitsandbytes warn in every process that imports transformers, so they stay out of .venv.
test-quantization: $(VENV)/installed
	$(PIP) install --upgrade --no-deps --target .venv-quantization "torchao>=0.18,<0.19" "bitsandbytes>=0.50,<0.51"
	PYTHONPATH=.venv-quantization $(BIN)/python -m pytest tests/modeling/test_quantization.py tests/docs/test_python_blocks.py -k quant

lint: $(VENV)/installed
	$(PIP) install -c $(CONSTRAINTS) ruff mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vitrail

# Renews the generated parts of README and docs/, then builds the site.
docs: $(VENV)/installed
	$(BIN)/python docs/generate.py
	$(MAKE) site

# Builds the site; a broken link is an error.
site: $(VENV)/installed
	$(PIP) install -c $(CONSTRAINTS) mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-quantization $(DEMO) build site vitrail.egg-info
