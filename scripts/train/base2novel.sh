#!/usr/bin/env bash
# Train base-to-novel: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_base train base2novel "" "k400 hmdb51 ucf101 ssv2"
