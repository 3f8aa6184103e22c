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

.PHONY: figures test lab bench embedded notebooks data clean
.DELETE_ON_ERROR:

figures: data
	$(RUN) -m vlmad_utils.book run

test: data
	$(RUN) -m pytest tests
	$(RUN) -m pytest --nbmake --nbmake-timeout=1800 notebooks
	$(RUN) -m pytest tests/test_results.py

lab: $(READY)
	$(RUN) -m jupyterlab notebooks

bench: $(READY)
	$(RUN) -m vlmad_utils.bench

embedded: data
	$(RUN) -m vlmad_utils.embedded_training

notebooks: data
	$(RUN) -m vlmad_utils.book run --in-place
	$(RUN) -m vlmad_utils.book readme

data: $(READY)
	$(RUN) -m vlmad_utils.sources

$(READY): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e ".[notebooks,test]"
	touch $@

clean:
	rm -rf build data/store
