# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
NOTEBOOKS ?= cache
# a worker takes up to 3 GB
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
BIN = $(VENV)/bin
# the napari plugin's tests open real windows where there is a display, or X without one (apt-get install xvfb xauth)
X = $(if $(DISPLAY)$(WAYLAND_DISPLAY),,$(if $(shell command -v xvfb-run),xvfb-run -a -s "-screen 0 1400x900x24 +extension GLX"))

.PHONY: demo test test-slow lint docs bench
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/decode localize sample_data/blinking_2d.tif --model gaussian-2d \
	  --camera sample_data/camera.yaml -o $(OUT)
	$(BIN)/decode evaluate $(OUT)/blinking_2d.csv sample_data/blinking_2d_truth.csv --two-d
	@echo "The molecules are in $(OUT)/blinking_2d.csv, the picture is $(OUT)/blinking_2d.png"

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(X) $(BIN)/pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# build/docs/index.html, which needs no network; NOTEBOOKS=off does not run the notebooks
docs: $(VENV)/.installed-dev
	NOTEBOOKS=$(NOTEBOOKS) $(BIN)/sphinx-build -q -W --keep-going -b html -d build/doctrees docs build/docs

# figures of speed want an idle machine; DECODE_DATA names the folder of movies that are no part of the project
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/report.py $(if $(MODELS),--model $(MODELS))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt picks a CPU build of PyTorch; the stamps make a second `make` install nothing
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,gui-test]'
	touch $@ $(VENV)/.installed
