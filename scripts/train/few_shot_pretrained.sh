#!/usr/bin/env bash
# Train few-shot from the zero-shot checkpoint: row (P).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot train few_shot_pretrained "" "hmdb51 ucf101 ssv2" resume="$CHECKPOINT"
