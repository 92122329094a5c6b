#!/usr/bin/env bash
# From a fresh clone to a trained and tested model: environment, embedded data set, training, test, results.
#
#   bash scripts/quickstart.sh [key=value ...]
#
# Arguments go to main.py (seed=1, epochs=4, output=runs/other). A second start reuses what is there: the environment, the
# data set, and the run, which goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

output=runs/quickstart
for argument in "$@"; do
    case "$argument" in output=*) output="${argument#output=}" ;; esac
done

prepare_environment requirements.txt
python scripts/make_shapes.py --output data/shapes
gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
processes="$((gpus > 0 ? gpus : 1))"
echo "training on $([[ "$gpus" -gt 0 ]] && echo "$gpus GPU(s)" || echo "the CPU")"
# Without this torchrun would use one thread where it starts several processes.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(python -c "import os; print(max(1, (os.cpu_count() or 1) // $processes))")}"
torchrun --standalone --nproc_per_node="$processes" main.py -cn zero_shot data=zero_shot_shapes \
    trainer=tc_clip_tiny output="$output" "$@"
python scripts/plot_run.py "$output"
echo
echo "weights          $output/best.pth"
echo "results          $output/results.json, predictions of every video beside it (predictions_*.csv)"
echo "pictures         $output/curves.png, $output/confusion_*.png; the videos: data/shapes/overview.png"
echo "logs             $output/log.txt, metrics.jsonl; tensorboard --logdir $output"
