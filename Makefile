# make demo          the whole platform on this machine, trained on the samples, serving until Ctrl-C
# make demo SERVE=0  the same, but exit after the report
# make test          all checks and tests, in three processes; TEST_PROCESSES=4 for more, 0 for a single one
# make quick         the tests that a change affects, the nearest first, for at most a minute. The change is everything
#                    since the branch left main, or since BASE=HEAD~3, with uncommitted files (tests/support/quick.py)
# make fuzz          some 20,000 generated requests against the running service; FUZZ_S=600 for longer
# make bad-input     6,000 damaged files of every format to a running stack; BAD_INPUT=1000 for fewer, BAD_INPUT_SEED=2
#                    for others
# make fuzz-readers  each reader of uploads fuzzed by coverage with atheris; FUZZ_READERS_S=60 for a minute each
# make lock          the images' packages with hashes (docker/locks), as pyproject.toml pins them
# make audit         known vulnerabilities in the images' packages, and lists of them (CycloneDX, in build/sbom); needs
#                    the internet, and what it finds depends on the day: no part of `make check`
# make docker        the compose file on a Docker engine, and the dashboard's queries on Prometheus; takes some minutes
# make faults        kill, freeze and starve the parts of a running stack under load, and write the results into
#                    docs/operation.md; a quarter of an hour. Full and slow disks need root
# make hour          a running stack under a mixed load for an hour: memory, descriptors, files, keys and disk with their
#                    slopes, into docs/operation.md; HOUR_MINUTES=20 for less
# make bench         the benchmarks of speed, into benchmarks/SPEED.md; takes some minutes
#
# TORCH_INDEX=https://download.pytorch.org/whl/cpu installs torch's CPU build, which is far smaller than PyPI's build
# for Linux with CUDA. PYTHON=python3.12 uses another Python (3.11 or newer).

PYTHON ?= python3
TORCH_INDEX ?=
SERVE ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

FUZZ_S ?= 400
LOCK ?=
FUZZ_READERS_S ?= 300
BAD_INPUT ?= 6000
BAD_INPUT_SEED ?= 19
TEST_PROCESSES ?= 3
HOUR_MINUTES ?= 60
BASE ?=
.PHONY: demo test quick check fuzz bad-input fuzz-readers lock audit docker faults hour bench clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[worker,video,plots,embedded,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m service.demo $(if $(filter 0,$(SERVE)),--no-serve)

# a hundred processes of the tests import the same modules: keep them compiled, also where the environment says not to
test: check
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

quick: $(STAMP)
	@TEST_PROCESSES=$(TEST_PROCESSES) $(BIN)/python -m tests.support.quick $(BASE)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m service.client.generate --check

fuzz: $(STAMP)
	PPL_FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest -s tests/integration/test_api_fuzz.py

bad-input: $(STAMP)
	PPL_BAD_INPUT=$(BAD_INPUT) PPL_BAD_INPUT_SEED=$(BAD_INPUT_SEED) $(BIN)/python -m pytest -s tests/integration/test_bad_input.py

fuzz-readers: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PPL_ATHERIS_S=$(FUZZ_READERS_S) $(BIN)/python -m pytest -s -n 0 tests/fuzz

lock: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[audit]'
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docker/lock.sh $(LOCK)

audit: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[audit]'
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docker/audit.sh

docker: $(STAMP)
	PPL_TEST_DOCKER=1 $(BIN)/python -m pytest -s -n 0 -m docker tests/docker

faults: $(STAMP)
	$(BIN)/python -m tests.integration.faults --write

hour: $(STAMP)
	$(BIN)/python -m tests.integration.hour --minutes $(HOUR_MINUTES) --write

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .demo build *.egg-info
