#!/usr/bin/env bash
# An array of runs on preemptible machines: task N trains with the arguments on line N of a file. Each task saves when its
# machine is taken away, is requeued, and resumes.
#
#   sbatch --array=1-12 --partition=preemptible scripts/slurm/array.sh runs.txt
#
# runs.txt has one line per run, as: -cn few_shot data=few_shot_ucf101 shot=16 output=runs/few_shot/ucf101_16
#
#SBATCH --job-name=tc_clip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt
#SBATCH --signal=B:USR1@300
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the root of the checkout}"
source scripts/slurm/run.sh

list="${1:?name the file of runs}"
line="$(sed -n "${SLURM_ARRAY_TASK_ID:?submit this script with --array}p" "$list")"
[[ -n "$line" ]] || { echo "array.sh: $list has no line $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
# Split into words as a shell does, with quotes, but without running anything.
mapfile -t words < <(xargs -n1 printf '%s\n' <<<"$line")
run_and_requeue "${words[@]}"
