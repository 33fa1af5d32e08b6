# Two commands matter: `make run` (the whole quick study) and `make test` (everything that is checked).
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
READY := .venv/.installed

# Test files are dealt out to two processes; more of them need more memory, 2 GB each.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile
# Small networks gain little from a second thread: two notebooks at once, each with one. FIRST takes longest, LATER need
# what the others trained.
NBVAL := OMP_NUM_THREADS=1 $(PYTEST) --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout 1200 -p no:cacheprovider
FIRST := notebooks/11_shortcut_study.ipynb
LATER := $(addprefix notebooks/,09_efficientad.ipynb 08_cam_explanation.ipynb 07_ablation_comparison.ipynb)

SLOW := $(addprefix tests/,test_train.py test_evaluation.py test_studies_faithfulness.py test_efficientad_train.py test_efficientad_distill.py)

.PHONY: run test tests unit lint types notebooks browser wheel lab execute clean

run: $(READY)
	$(BIN)/gainmtl run all -f params/quick.yaml

test: lint types tests notebooks

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "Python 3.11 or 3.12 is needed; found $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,export,cluster,mlflow]'
	@# mmengine pulls opencv-python, which needs a display library; the headless build goes over it.
	$(BIN)/python -m pip install --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

tests: $(READY)
	$(PYTEST) tests

# Without the tests that train, the commands and the hygiene of the notebooks.
unit: $(READY)
	$(PYTEST) tests --ignore tests/test_commands.py --ignore tests/test_notebooks.py $(addprefix --ignore ,$(SLOW))

# Finished quick runs are reused; from an empty clone this trains them.
notebooks: $(READY)
	$(NBVAL) $(FIRST) $(filter-out $(FIRST) $(LATER),$(sort $(wildcard notebooks/*.ipynb)))
	$(NBVAL) $(LATER)

# The CAM browser in JupyterLab and as a page of its own, and the report from a file with the network off.
# Needs Chromium or Chrome, so that 'test' leaves it out.
browser: $(READY)
	$(BIN)/pytest tests/in_browser/check_*.py

# For the Dockerfile, see docs/remote.md.
wheel: $(READY)
	rm -f dist/gainmtl-*.whl
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

lab: $(READY)
	$(BIN)/jupyter lab notebooks

# Executes the committed notebooks in place and cleans them; running it twice changes nothing.
execute: $(READY)
	$(BIN)/gainmtl notebooks

clean:
	rm -rf outputs/quick outputs/shortcut outputs/data build dist .pytest_cache .ruff_cache
