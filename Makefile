# run, test, lab: each makes the environment first, once. docs/running.md has the plain commands.
PYTHON ?= python3
PRESET ?= quick
SOURCE ?= phantom
ARGS ?=
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
LINT = $(BIN)/ruff check . && $(BIN)/lint-imports --no-cache

.PHONY: run test test-low test-images test-browser test-faults fuzz audit lab notebooks weights student site bench bench-real bench-gpu lint clean

run: .venv/ready
	$(BIN)/python -m brats_helpers run --preset $(PRESET) --source $(SOURCE) $(ARGS)

test: .venv/ready-dev
	$(LINT)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder $(ARGS)

test-browser: .venv/ready-dev          # widgets and pages in Chromium (apt install chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt playwright
	$(BIN)/python -m pytest tests/test_browser.py -s $(ARGS)

test-low: .venv-low/ready              # quick tests with the lowest versions allowed: two minutes
	$(subst .venv,.venv-low,$(BIN))/python -m pytest -p no:cacheprovider -W ignore @tests/quick.txt $(ARGS)

# Python as on the image, from pyenv if it is there.
pyenv = $(lastword python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python))
PYTHON_kaggle ?= $(call pyenv,3.12)
PYTHON_colab ?= $(call pyenv,3.13)
IMAGE = $(subst .venv,.venv-image-$*,$(BIN))/python
test-images: test-image-kaggle test-image-colab
test-image-%: .venv-image-%/ready      # the notebooks and the widgets in a replica of an image
	rm -rf runs/images/$*
	$(IMAGE) tests/images/run.py $* runs/images/$*
	$(IMAGE) -m pytest -p no:cacheprovider tests/lessons/test_pictures.py
.PRECIOUS: .venv-image-%/ready

FAULTS := interruptions bad_input loop archive dicom fuzz_corpus endurance official_metrics
test-faults: .venv/ready-dev           # kills at least twenty times instead of twice; half an hour
	BRATS_KILLS=40 $(BIN)/python -m pytest $(foreach n,$(FAULTS),$(wildcard tests/test_$n.py tests/*/test_$n.py)) $(ARGS)

FUZZ_SECONDS ?= 600
fuzz: .venv/ready-dev                  # find bytes that crash the readers of archives and scans (Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	mkdir -p runs/fuzz
	cd runs/fuzz && for target in archive nifti; do \
		../../$(BIN)/python -W ignore ../../tests/data/fuzz $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; done

audit: .venv/ready                     # known vulnerabilities and licenses of our imports (needs network)
	$(PYTHON) -m venv .venv-audit
	$(subst .venv,.venv-audit,$(BIN))/python -m pip install --quiet --disable-pip-version-check pip-audit pip-licenses
	mkdir -p runs/audit
	$(subst .venv,.venv-audit,$(BIN))/pip-licenses --python $(BIN)/python --from=mixed --format=markdown \
		--output-file=runs/audit/licenses.md
	-$(subst .venv,.venv-audit,$(BIN))/pip-audit --path .venv/lib/python3.*/site-packages --format=markdown \
		--output=runs/audit/vulnerabilities.md

lab: .venv/ready                       # Jupyter refuses root, as in a container, without --allow-root
	$(BIN)/python -m jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: .venv/ready                 # regenerate the committed .ipynb from the .py, with the quick preset's outputs
	rm -rf runs/notebooks      # else what older code made would be kept, and minutes would not count
	$(BIN)/python -m brats_helpers notebooks

weights: .venv/ready                   # retrain the networks in the box: takes hours, can be resumed
	$(BIN)/python -m brats_helpers weights

student: .venv/ready                   # editions/student with blanks, editions/teacher with solutions and notes
	$(BIN)/python -m brats_helpers editions

site: .venv-site/ready                 # pages of the notebooks and the guides, with search and glossary
	NO_MKDOCS_2_WARNING=1 $(subst .venv,.venv-site,$(BIN))/python -m mkdocs build --strict
	@echo "open site/index.html"

# This project and its peers, in their own environment.
bench: .venv-bench/ready
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks $(ARGS)
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks.scaling

BUDGET ?= 20
bench-real: .venv-bench/ready          # DATA=folder of ten labeled patients or more, BUDGET=minutes of each training
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks.real_cohort $(DATA) --minutes $(BUDGET) $(ARGS)

bench-gpu: .venv-bench/ready           # does nothing without a GPU
	$(subst .venv,.venv-bench,$(BIN))/python -m benchmarks.gpu $(ARGS)

lint: .venv/ready-dev                  # and who imports whom: the contracts in pyproject.toml
	$(LINT)

clean:                                 # results stay: delete runs/ by hand
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch first and alone: as a dependency, pip would take the newest build, with gigabytes of CUDA.
.venv/ready: requirements.txt requirements-terminal.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements.txt -r requirements-terminal.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

.venv-low/ready: requirements.txt requirements-terminal.txt constraints-low.txt
	$(PYTHON) -m venv .venv-low
	$(subst .venv,.venv-low,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints-low.txt torch
	$(subst .venv,.venv-low,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints-low.txt \
		-r requirements.txt -r requirements-terminal.txt pytest hypothesis
	touch $@

.venv-image-%/ready: tests/images/%.txt
	$(PYTHON_$*) -m venv .venv-image-$*
	$(IMAGE) -m pip install --quiet --disable-pip-version-check -c $< torch
	$(IMAGE) -m pip install --quiet --disable-pip-version-check -r $<
	$(IMAGE) -m pip freeze > $@

.venv-site/ready: docs/requirements.txt
	$(PYTHON) -m venv .venv-site
	$(subst .venv,.venv-site,$(BIN))/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

.venv-bench/ready: requirements.txt constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(subst .venv,.venv-bench,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(subst .venv,.venv-bench,$(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements.txt -r benchmarks/requirements.txt
	touch $@
