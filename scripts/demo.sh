#!/usr/bin/env bash
# Makes .venv, installs datafree and distils a teacher without its data.
#
#     bash scripts/demo.sh                                  # the embedded job: real handwritten digits, no download
#     bash scripts/demo.sh --teacher resnet34.pt            # any arguments of `datafree train`
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

make_environment
exec "$VENV/bin/datafree" train "$@"
