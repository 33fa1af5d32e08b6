# Two commands matter: `make run` (the whole quick study) and `make test` (everything that is checked).
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
READY := .venv/.installed

SLOW := $(addprefix tests/,test_fit.py test_same_seed.py test_measured_faithfulness.py test_efficientad_fit.py test_distill.py)

.PHONY: run test unit training lint types commands notebooks browser lab execute clean

run: $(READY)
	$(BIN)/gainmtl run all -f params/quick.yaml

test: lint types unit training commands notebooks

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "Python 3.11 or 3.12 is needed; found $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@# mmengine pulls opencv-python, which needs a display library; the headless build goes over it.
	$(BIN)/python -m pip install --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

unit: $(READY)
	$(BIN)/pytest tests --ignore tests/test_commands.py --ignore tests/test_notebooks.py $(addprefix --ignore ,$(SLOW))

# Tests that train and explain small networks again and again.
training: $(READY)
	$(BIN)/pytest $(SLOW)

commands: $(READY)
	$(BIN)/pytest tests/test_commands.py

# Finished quick runs are reused; from an empty clone this trains them.
notebooks: $(READY)
	$(BIN)/pytest tests/test_notebooks.py
	$(BIN)/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 1200 -p no:cacheprovider notebooks

# The CAM browser in JupyterLab and as a page of its own; after 'make run' also notebook 08 and both systems side by side.
# Needs Chromium or Chrome, so that 'test' leaves it out.
browser: $(READY)
	$(BIN)/pytest tests/in_browser/check_*.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

# Executes the committed notebooks in place and cleans them; running it twice changes nothing.
execute: $(READY)
	$(BIN)/gainmtl notebooks

clean:
	rm -rf outputs/quick outputs/shortcut outputs/data .pytest_cache .ruff_cache
