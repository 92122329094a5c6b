#!/usr/bin/env bash
# Train zero-shot with LLM-rephrased names (labels=froster for those of FROSTER): row (LLM).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

train zero_shot/k400_llm -cn zero_shot data=zero_shot_k400_llm
