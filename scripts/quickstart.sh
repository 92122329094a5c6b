#!/usr/bin/env bash
# From a fresh clone to a trained and tested model: environment, embedded data set, training, test, results.
#
#   bash scripts/quickstart.sh [key=value ...]
#
# It creates .venv and installs about 5 GB of packages into it, creates the "shapes" data set in data/shapes, and trains
# into runs/quickstart. Arguments are passed to main.py (seed=1, epochs=4, output=runs/other). A second start reuses what
# exists: the environment, the data set, and the run, which resumes where it stopped.
# PYTHON names the interpreter that creates .venv: PYTHON=python3.12 bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
output=runs/quickstart
for argument in "$@"; do
    case "$argument" in
    -h | --help)
        usage scripts/quickstart.sh
        exit
        ;;
    output=*) output="${argument#output=}" ;;
    *=*) ;;
    *) _fail "$argument: the form is key=value; --help explains" ;;
    esac
done

# _between LOW VALUE HIGH: the value, limited to the range.
_between() {
    echo "$(($2 < $1 ? $1 : $2 > $3 ? $3 : $2))"
}

prepare_environment requirements.txt
python scripts/make_shapes.py --output data/shapes

machine="$(python -c 'import torch
from video_datasets.machine import available_cores
print(torch.cuda.device_count(), available_cores())')"
read -r gpus cores <<<"$machine"
total_batch_size=8 # many small updates, which a model that starts from random weights needs
if [[ "$gpus" -gt 0 ]]; then
    echo "training on $gpus GPU(s)"
    processes="$gpus"
    # A power of two: every GPU gets a micro-batch of each update, as long as there are at most 8 GPUs.
    batch_size="$total_batch_size"
    while [[ "$batch_size" -gt 1 && "$((batch_size * gpus))" -gt "$total_batch_size" ]]; do
        batch_size="$((batch_size / 2))"
    done
    threads=1
else
    echo "training on the CPU, $cores core(s)"
    processes=1
    batch_size="$total_batch_size"
    # num_workers=auto reads with a third of the cores.
    threads="$(_between 1 "$((cores - (cores < 3 ? 1 : cores / 3)))" 8)"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"

# The published recipe fine-tunes CLIP at rates of 1e-6 to 1e-5; this model starts from random weights.
torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node="$processes" main.py -cn zero_shot data=zero_shot_shapes trainer=tc_clip_tiny \
    output="$output" aug=light epochs=16 warmup_epochs=1 lr=8e-4 lr_min=8e-6 save_freq=4 \
    batch_size="$batch_size" total_batch_size="$total_batch_size" test_batch_size=32 \
    logging.print_every=96 "$@"
python scripts/plot_run.py "$output"
# What the model attends to in a video of a class that it was not trained on.
video=data/shapes/videos/red_square_moving_sideways_065.mp4
python scripts/visualize.py "$video" --checkpoint "$output/best.pth" \
    --class data/shapes/labels/held_out.csv --show 1 --output "$output/pictures"
echo
echo "weights          $output/best.pth"
echo "results          $output/results.json, predictions of every video beside it (predictions_*.csv)"
echo "pictures         $output/curves.png, $output/confusion_*.png; the videos: data/shapes/overview.png"
echo "attention        $output/pictures/red_square_moving_sideways_065.png, .mp4, .html (frame slider and token picker)"
echo "report           $output/report.html"
echo "logs             $output/log.txt, $output/metrics.jsonl; tensorboard --logdir $output"
echo
echo "next, in this folder:"
echo "    source .venv/bin/activate"
echo "    tc-clip predict $video --checkpoint $output/best.pth --classes data/shapes/labels/all.csv"
echo "This model knows the 48 classes of the shapes data set and nothing else. For videos of your own see README.md."
