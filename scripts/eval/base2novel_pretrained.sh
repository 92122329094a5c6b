#!/usr/bin/env bash
# Test the best base-to-novel checkpoints from the zero-shot checkpoint: row (P).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_base evaluate base2novel_pretrained "" "hmdb51 ucf101 ssv2"
