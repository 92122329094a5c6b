#!/usr/bin/env bash
# Train few-shot: row TC-CLIP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot train few_shot "" "hmdb51 ucf101 ssv2"
