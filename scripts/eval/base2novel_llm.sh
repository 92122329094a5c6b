#!/usr/bin/env bash
# Test the best base-to-novel checkpoints with LLM-rephrased names: row (LLM).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_base evaluate base2novel _llm "k400 hmdb51 ucf101"
