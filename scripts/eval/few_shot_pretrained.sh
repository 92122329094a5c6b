#!/usr/bin/env bash
# Test the best few-shot checkpoints from the zero-shot checkpoint: row (P).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot evaluate few_shot_pretrained "" "hmdb51 ucf101 ssv2"
