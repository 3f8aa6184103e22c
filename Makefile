# make figures   fetch data, run all notebooks, two at a time; rewrites figures/ and data/results/
# make check     lint, format, types and the quick tests: minutes, before each commit
# make test      all tests, then the notebooks as tests (nbmake)
# make lab       JupyterLab in the same environment
# make bench     time and memory as ratios within one run, into data/results/bench.csv
# make embedded  retrain the embedded vision-language model
# make notebooks execute the committed notebooks in place, renew README's table and navigation
# make data      fetch and check the data; make clean removes data/store, build/ (also results of 60) and dist/
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.vlmad-installed
# notebooks (and tests) that run at once, each on its share of the cores; JOBS=1 where memory is short
JOBS ?= 2
SHARE = OMP_NUM_THREADS=$$($(RUN) -c "import os; print(max(1, os.cpu_count() // $(JOBS)))")
NBMAKE = -m pytest -p no:cacheprovider --nbmake --nbmake-timeout=3600
# 40 measures time and 90 reads what the others stored: they run last, one after the other, on all cores
LAST = notebooks/40_*.ipynb notebooks/90_*.ipynb
TOGETHER = $(SHARE) $(RUN) $(NBMAKE) -n $(JOBS) --maxschedchunk=1 --ignore-glob='*/40_*' --ignore-glob='*/90_*'
ALONE = $(RUN) $(NBMAKE)

.PHONY: figures check test lab bench embedded notebooks data clean
.DELETE_ON_ERROR:

figures: data
	$(TOGETHER) --ignore=notebooks/solutions notebooks
	$(ALONE) $(LAST)

check: data
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyrefly check
	$(SHARE) $(RUN) -m pytest -n $(JOBS) -m "not slow" tests

# test_results runs once more, on the tables that the notebooks have just written
test: data
	$(SHARE) $(RUN) -m pytest -n $(JOBS) tests
	$(TOGETHER) notebooks
	$(ALONE) $(LAST)
	$(RUN) -m pytest tests/notebooks/test_results.py

lab: $(READY)
	$(RUN) -m jupyterlab notebooks

bench: $(READY)
	$(RUN) -m benchmarks.speed

embedded: data
	$(RUN) -m embedded_model.training

notebooks: data
	$(TOGETHER) --overwrite notebooks
	$(ALONE) --overwrite $(LAST)
	$(RUN) notebooks/publish.py

data: $(READY)
	$(RUN) -m vlmad_utils.data.fetch

$(READY): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e ".[notebooks,test]"
	touch $@

clean:
	rm -rf build dist data/store
