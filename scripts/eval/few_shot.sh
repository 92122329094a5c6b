#!/usr/bin/env bash
# Test the best few-shot checkpoints: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot evaluate few_shot "" "hmdb51 ucf101 ssv2"
