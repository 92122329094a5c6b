#!/usr/bin/env bash
# Environment, lint and the whole test suite.
#
#   bash scripts/test.sh [arguments of pytest]      for example: bash scripts/test.sh tests/video_datasets -k sampling
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
case "${1:-}" in
-h | --help)
    usage scripts/test.sh
    exit
    ;;
esac

prepare_environment requirements-dev.txt
ruff check .
ruff format --check .
mypy
# A file's tests share what they prepare, so they run in one process.
python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
