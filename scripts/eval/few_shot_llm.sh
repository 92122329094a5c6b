#!/usr/bin/env bash
# Test the best few-shot checkpoints with LLM-rephrased names: row (LLM).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot evaluate few_shot _llm "hmdb51 ucf101"
