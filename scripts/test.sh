#!/usr/bin/env bash
# Makes .venv, installs the test tools and checks everything: format, lint, types, import rules, tests.
#
#     bash scripts/test.sh                      # the unit tests
#     bash scripts/test.sh --all                # the slow tests too
#     bash scripts/test.sh tests/losses -k kl   # further arguments go to pytest (-n 0: one process)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

if [[ "${1:-}" == --all ]]; then
    shift
    set -- -m "" "$@" # overrides the -m "not slow" of setup.cfg
fi

run() {
    printf '+%s\n' "$(printf ' %q' "$@")"
    "$@"
}

make_environment test
export PATH=$VENV/bin:$PATH
export CUDA_VISIBLE_DEVICES="" # the tests are for the CPU
export OMP_NUM_THREADS=1       # two threads on busy cores can be many times slower than one
cd "$ROOT"

run ruff format --check .
run ruff check .
run mypy
run lint-imports
run pre-commit validate-config
# A process for each core, each with its own copy of torch; a machine's memory sets the most.
run python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
