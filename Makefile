# Each target does all of its own set-up: `make demo` and `make test` need Python 3.11 to 3.14, make and a C compiler.

# The Python that .venv is made from: the first one that is new enough and not too new.
PYTHON ?= $(shell tools/find-python)

STAMP := .venv/.asikit-installed

# What the tests need of Debian; a test whose program is missing is left out, and said so.
TEST_PACKAGES := qemu-system-x86 qemu-utils busybox-static cpio fio e2fsprogs zstd kmod sqlite3 iproute2 procps

# What the tests of pages, of shells and of man pages need: a browser, with fonts.
MORE_TEST_PACKAGES := chromium fonts-dejavu-core zsh fish mandoc

# What the slow ones need besides.
SLOW_TEST_PACKAGES := golang-go

# The suites of Debian that recording is promised on.
SUITES := 12 13 sid

# How many tests run at once. A recording takes a core and some 400 MiB.
JOBS ?= 2

PYTEST := .venv/bin/python -m pytest -n $(JOBS) --dist worksteal

# What `make workloads` records: names of tests/record/workloads/table.toml; all if empty.
NAME ?=

.PHONY: help demo test test-all test-recorder test-recorder-all test-suites lint site dist sbom bench validate kernels workloads distortion lock clean test-packages

help:
	@echo 'make demo         replay the sample recordings and show what ASI would cost'
	@echo 'make test         run the tests but for the slow ones (installs the Debian packages they need when run as root)'
	@echo 'make test-all     run the slow ones too: recordings on all of Debian'"'"'s kernels, of many commands, cut off at any moment; larger state spaces'
	@echo 'make test-suites  as root: the first steps of the README and the tests of recording on Debian $(SUITES)'
	@echo 'make lint         ruff, mypy --strict, import-linter'
	@echo 'make site         build the documentation as a site, in build/site'
	@echo 'make dist         build the wheel and the source archive twice, compare them, and write what they are made of'
	@echo 'make bench        measure recording and replay, as ratios'
	@echo 'make validate     compare predicted exits with those of a real kernel with ASI (minutes)'
	@echo 'make kernels      record on each kernel of Debian and compare with its own counts (minutes)'
	@echo 'make workloads    record and replay the workloads of docs/workloads.md, or NAME="redis git" (an hour)'
	@echo 'make distortion   as root: exits on the disk that a recording makes up, against a real ext4 (minutes)'
	@echo 'make lock         choose the newest dependencies and write requirements.lock'
	@echo 'make clean        remove .venv and all caches'

demo: $(STAMP)
	@.venv/bin/asi demo

test: $(STAMP) test-packages
	@tools/debian-packages $(MORE_TEST_PACKAGES)
	$(PYTEST) -m 'not slow'

test-all: test
	@tools/debian-packages $(SLOW_TEST_PACKAGES)
	$(PYTEST) -m slow

# What depends on QEMU, Python and the C library; the kernels of other suites are tried once, by `make test-all`.
RECORDER_TESTS := tests/record tests/docs/test_examples.py::test_recording_examples

test-recorder: $(STAMP) test-packages
	$(PYTEST) -m 'not needs_apt and not slow' $(RECORDER_TESTS)

# With each QEMU the predictions are to be what the one real kernel did.
test-recorder-all: test-recorder
	$(PYTEST) -m 'not needs_apt and slow' $(RECORDER_TESTS)
	$(PYTEST) tests/record/test_validation.py

test-suites:
	@set -e; for suite in $(SUITES); do \
	    echo "== Debian $$suite: the first steps of the README"; tools/in-debian --fresh $$suite tools/first-steps; \
	    echo "== Debian $$suite: the tests of recording"; tools/in-debian $$suite make test-recorder-all; \
	done

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

site: $(STAMP)
	.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/site
	@echo 'build/site/index.html'

# The same bytes each time: what is published can be built and compared by anybody.
dist: $(STAMP)
	rm -rf dist build
	.venv/bin/python -m hatchling build --directory dist
	.venv/bin/python -m hatchling build --directory build/again
	diff -r dist build/again
	@$(MAKE) --no-print-directory sbom
	cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

sbom: $(STAMP)
	@mkdir -p dist
	.venv/bin/python tools/sbom.py dist/asikit.cdx.json

bench: $(STAMP)
	.venv/bin/python bench/run.py

validate: $(STAMP) test-packages
	tools/validate

kernels: $(STAMP) test-packages
	.venv/bin/python -m bench.kernels

workloads: $(STAMP) test-packages
	.venv/bin/python -m bench.workloads $(NAME)

distortion: $(STAMP) test-packages
	.venv/bin/python -m bench.disk

test-packages:
	@tools/debian-packages $(TEST_PACKAGES)

$(STAMP): requirements.lock pyproject.toml tools/make-venv
	@tools/make-venv '$(PYTHON)'
	@touch $@

lock: $(STAMP)
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --extra dev \
	    --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests bench docs tools -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
