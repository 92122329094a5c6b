#!/usr/bin/env bash
# Train few-shot with LLM-rephrased names: row (LLM).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" "$@"

each_shot train few_shot _llm "hmdb51 ucf101"
