# make demo    train a small CNN on handwritten digits and plot how it went
# make test    the whole test suite, with the compiled kernels and with the NumPy reference
# make lint    ruff, rules and format
# make bench   every kernel and both README models against plain NumPy
# make wheel   sdist and wheel in dist/
# make clean   remove everything that was made here
#
# make sanitize          tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make sanitize-threads  tests of the thread pool under ThreadSanitizer

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc smallpebble -name '*.py' -o -name '*.py[x]' -o -name '*.px[di]' -o -name '*.inc' -o -name '*.h')

.PHONY: demo test test-compiled test-reference lint format bench wheel sanitize sanitize-threads clean

# The package is installed, not linked, so what is tested is what users get.
$(VENV)/installed: setup.py pyproject.toml $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[plot,test]"
	touch $@

$(VENV)/developer: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build ruff \
		"cython>=3.1,<3.4" "setuptools>=77"
	touch $@

demo: $(VENV)/installed
	cd $(VENV) && bin/python -m smallpebble train cnn --plot $(CURDIR)/demo.png

# pytest as a program, not as a module: the tests then import the installed package.
test: $(VENV)/installed
	$(MAKE) --no-print-directory -j 2 test-compiled test-reference

test-compiled:
	$(BIN)/pytest -q

test-reference:
	SMALLPEBBLE_KERNELS=reference $(BIN)/pytest -q -p no:cacheprovider

lint: $(VENV)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	cd $(VENV) && bin/python -m smallpebble bench

wheel: $(VENV)/developer
	$(BIN)/python -m build --outdir dist .

sanitize: $(VENV)/developer
	PYTHON=$(CURDIR)/$(BIN)/python .ci/sanitize address

sanitize-threads: $(VENV)/developer
	PYTHON=$(CURDIR)/$(BIN)/python .ci/sanitize thread

clean:
	rm -rf $(VENV) build dist *.egg-info demo.png .pytest_cache .hypothesis .ruff_cache
	find csrc -name '_*.c' -delete
	find smallpebble -name '*.so' -delete -o -name '__pycache__' -exec rm -rf {} +
