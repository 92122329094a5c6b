#!/usr/bin/env bash
# Test the best fully supervised checkpoint of Kinetics-400 with 4 x 3 views.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

evaluate fully_supervised/k400 -cn fully_supervised data=fully_supervised_k400
