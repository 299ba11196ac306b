# make demo          the whole platform on this machine, trained on the samples, serving until Ctrl-C
# make demo SERVE=0  the same, ending by itself
# make test          all checks and tests, in three processes, as tests wait for half of their time; TEST_PROCESSES=4 for
#                    more, 0 for one after the other
# make quick         the tests that a change touches, the nearest first, for at most a minute; BASE=HEAD~3 for another start
#                    than the branch's on main; what is not committed counts as well (tests/support/quick.py)
# make fuzz          some 20,000 made-up requests against the running service; FUZZ_S=600 for longer
# make bench         the benchmarks of speed, into benchmarks/SPEED.md; some minutes
#
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch's CPU build: far smaller than the one with CUDA that
# PyPI has for Linux. PYTHON=python3.12 takes another Python (3.11 or newer).

PYTHON ?= python3
TORCH_INDEX ?=
SERVE ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

FUZZ_S ?= 400
TEST_PROCESSES ?= 3
BASE ?=
.PHONY: demo test quick check fuzz bench clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, as in: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[worker,video,plots,embedded,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m service.demo $(if $(filter 0,$(SERVE)),--no-serve)

test: check
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

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

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .demo build *.egg-info
