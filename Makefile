# exaifs: the two commands are `make run` and `make test`. Everything they need is installed on first use;
# all state is in .exaifs/, which `make clean` removes.

VENV := .exaifs/venv
export EXAIFS_LITE_DIR := $(CURDIR)/.exaifs/lite
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test conformance resources check bench simulate crash faults format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start a local Supabase, mount its bucket at ./files; Ctrl-C stops both
	@.ci/bootstrap run
	@exec exaifs dev --state-dir .exaifs/dev --env-file .exaifs/dev.env --mount files

test: ## Run all checks and tests
	@.ci/bootstrap test
	@.ci/checks
	@exec pytest -q -n $(or $(JOBS),3) --dist loadfile $(PYTEST_ARGS)

conformance: ## Compare the mount with a local file system for ten minutes
	@.ci/bootstrap test
	@exec env EXAIFS_CONFORMANCE_S=120 EXAIFS_STRESS_S=60 EXAIFS_TEST_NAMES=2000 pytest -q $(PYTEST_ARGS) \
		tests/conformance tests/mount/test_posix_files.py

resources: ## Fill, break and starve the cache disk in every combination (root)
	@.ci/bootstrap test
	@exec env EXAIFS_THOROUGH=1 pytest -q $(PYTEST_ARGS) tests/resources tests/mount/test_bounds.py \
		tests/mount/test_failing_disk.py tests/mount/test_full_disk.py tests/unit/test_journal.py tests/unit/test_connection.py

check: ## Run the checks only: format, lint, types
	@.ci/bootstrap test
	@.ci/checks

bench: ## Measure speed, memory and freshness (about five minutes)
	@.ci/bootstrap test
	@PYTHONPATH=. exec python benchmarks/run.py $(BENCH_ARGS)

simulate: ## Play random programs and storms for SECONDS each (300), or those of SEED only
	@.ci/bootstrap test
	@exec env PYTHONHASHSEED=0 EXAIFS_SIMULATE_S=$(or $(SECONDS),300) EXAIFS_SIMULATE_SEED=$(SEED) \
		pytest -q -s tests/simulation

crash: ## Kill the daemon for SECONDS (300) or as SEED says, damage its journal, cut the power
	@.ci/bootstrap test
	@exec env EXAIFS_CRASH_S=$(or $(SECONDS),300) EXAIFS_CRASH_ROUNDS=$(ROUNDS) EXAIFS_CRASH_SEED=$(SEED) \
		pytest -q -s $(PYTEST_ARGS) tests/campaigns/crash

faults: ## Break the network for SECONDS (300) or as SEED says, under programs; a day offline
	@.ci/bootstrap test
	@exec env EXAIFS_FAULTS_S=$(or $(SECONDS),300) EXAIFS_FAULTS_SEED=$(SEED) \
		pytest -q -s $(PYTEST_ARGS) tests/campaigns/faults

format: ## Format the code
	@.ci/bootstrap test
	@ruff format .
	@ruff check --fix .

clean: ## Remove everything that was installed or stored, the embedded bucket included
	@.ci/clean
