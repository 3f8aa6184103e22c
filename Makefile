# make figures   fetch data, run every notebook in order, write figures/
# make test      unit tests, then the notebooks as tests (nbmake)
# make lab       JupyterLab in the same environment
# make bench     time and memory as ratios within one run, into data/results/bench.csv
# make embedded  retrain the embedded vision-language model (data/embedded/)
# make notebooks re-execute the committed notebooks in place and refresh README and navigation
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.vlmad-installed
# notebooks (and tests) that run at once, each on its share of the cores; JOBS=1 where memory is short
JOBS ?= 2
SHARE = OMP_NUM_THREADS=$$($(RUN) -c "import os; print(max(1, os.cpu_count() // $(JOBS)))")

.PHONY: figures test lab bench embedded notebooks data clean
.DELETE_ON_ERROR:

figures: data
	$(RUN) -m vlmad_utils.book run --jobs $(JOBS)

# 40 measures time and 90 reads what the others stored: they come last, by themselves
test: data
	$(SHARE) $(RUN) -m pytest -n $(JOBS) tests
	$(SHARE) $(RUN) -m pytest -n $(JOBS) --maxschedchunk=1 --nbmake --nbmake-timeout=3600 --ignore-glob='*/40_*' --ignore-glob='*/90_*' notebooks
	$(RUN) -m pytest --nbmake --nbmake-timeout=1800 notebooks/40_*.ipynb notebooks/90_*.ipynb
	$(RUN) -m pytest tests/test_results.py

lab: $(READY)
	$(RUN) -m jupyterlab notebooks

bench: $(READY)
	$(RUN) -m vlmad_utils.bench

embedded: data
	$(RUN) -m vlmad_utils.embedded_training

notebooks: data
	$(RUN) -m vlmad_utils.book run --in-place --jobs $(JOBS)
	$(RUN) -m vlmad_utils.book readme

data: $(READY)
	$(RUN) -m vlmad_utils.sources

$(READY): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e ".[notebooks,test]"
	touch $@

clean:
	rm -rf build data/store
