# Each target sets up .venv by itself on a machine that has only Python >= 3.11; a second call is quick.
PYTHON ?= python3
TORCH ?= 2.13.0
OUT ?= out/audit
DEVICE ?= cpu
ARGS ?=
BIN := .venv/bin
# Workers and the processes that tests start would compile the package and the tests again, each by itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: audit test test-portable lint soak docs device benchmarks clean

audit: .venv/.installed
	$(BIN)/kernelmem audit --out $(OUT) --overwrite $(ARGS)

test: .venv/.tested
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not soak" $(ARGS)

# The same tests under other BLAS code paths and two threads, one after the other: a tolerance must hold on every processor.
test-portable: .venv/.tested
	$(BIN)/python -m tests.portable $(ARGS)

soak: .venv/.tested
	$(BIN)/python -m pytest -q -m soak $(ARGS)
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -q -n 2 -m "hypothesis and not soak" tests

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Executes the tutorials and the gallery, and checks links, names and numbers of the built pages. 8 processes: small shares of the pages.
docs: .venv/.documented
	$(BIN)/sphinx-build -q -W --keep-going -j 8 docs out/docs/html
	$(BIN)/python docs/tools/check_site.py out/docs/html

# The script needs the checkout and the installed dependencies only: python3 -m experiments.device --device cuda
device: .venv/.tested
	$(BIN)/python -m experiments.device --device $(DEVICE) $(ARGS)

benchmarks: .venv/.tested
	$(BIN)/python -m experiments.benchmarks $(ARGS)

clean:
	rm -rf .venv out

# --group needs pip >= 25.1, which older Pythons do not bundle. torch without -q: with CUDA it is gigabytes, so show progress.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "kernelmem needs Python 3.11 or newer, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install "torch==$(TORCH)"
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install -q --group dev
	@touch $@

.venv/.documented: .venv/.tested
	$(BIN)/python -m pip install -q --group docs
	@touch $@
