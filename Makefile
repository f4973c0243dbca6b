# run, test, lab: each makes the environment first, once. The same as plain commands: README.md.
PYTHON ?= python3
PRESET ?= quick
SOURCE ?= phantom
ARGS ?=
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: run test test-faults lab notebooks bench bench-gpu lint clean

run: .venv/ready
	$(BIN)/python -m brats_helpers run --preset $(PRESET) --source $(SOURCE) $(ARGS)

test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(ARGS)

test-faults: .venv/ready-dev           # the same, killing twenty times where the quick tests kill four times
	BRATS_KILLS=40 $(BIN)/python -m pytest tests/test_interruptions.py tests/test_bad_input.py tests/test_training.py

lab: .venv/ready
	$(BIN)/python -m jupyter lab notebooks

notebooks: .venv/ready                 # regenerate the committed .ipynb from the .py, with the quick preset's outputs
	$(BIN)/python -m brats_helpers notebooks

# This project beside its peers, in an environment of its own.
bench: .venv-bench/ready
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks $(ARGS)
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks.scaling

bench-gpu: .venv-bench/ready           # says so and does nothing where there is no GPU
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks.gpu

lint: .venv/ready-dev
	$(BIN)/ruff check .

clean:                                 # results stay: delete runs/ by hand
	rm -rf .venv .venv-bench build *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch first and alone: any other package that asks for it would take the newest build, with gigabytes of CUDA.
.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

.venv-bench/ready: requirements.txt constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(subst .venv,.venv-bench,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(subst .venv,.venv-bench,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements.txt -r benchmarks/requirements.txt
	touch $@
