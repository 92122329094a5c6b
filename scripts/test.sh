#!/usr/bin/env bash
# Environment, lint and the whole test suite. Arguments go to pytest: bash scripts/test.sh tests/datasets -k sampling
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest "$@"
