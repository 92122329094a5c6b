#!/usr/bin/env bash
# Train base-to-novel from the zero-shot checkpoint: row (P).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_base train base2novel_pretrained "" "hmdb51 ucf101 ssv2" resume="$CHECKPOINT"
