#!/usr/bin/env bash
# Test the best zero-shot checkpoints, trained on Kinetics-400: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

evaluate zero_shot/k400 -cn zero_shot data=zero_shot_k400
