# make demo: set up and run the whole pipeline on the embedded default.   make test: set up and run every test.
# make docs: the documentation as a site in docs/_build/html.
# All set up once: a repeated call installs nothing.
.PHONY: install demo test docs check lint types fast format

PYTHON_BIN := .venv/bin/python

install:
	./install.sh

demo: install
	$(PYTHON_BIN) run.py

test: install
	OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest --numprocesses=2 --dist=loadgroup --durations=40 --durations-min=10

docs: install
	.venv/bin/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

check: install
	$(MAKE) --no-print-directory --jobs=2 --output-sync lint types fast

lint:
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

types:
	.venv/bin/pyright

fast:
	OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest -m "not slow" -q --numprocesses=2

format: install
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
