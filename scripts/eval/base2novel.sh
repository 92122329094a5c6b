#!/usr/bin/env bash
# Test the best base-to-novel checkpoints: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_base evaluate base2novel "" "k400 hmdb51 ucf101 ssv2"
