#!/usr/bin/env bash
# Train on Kinetics-400 for the zero-shot test: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

train zero_shot/k400 -cn zero_shot data=zero_shot_k400
