#!/usr/bin/env bash
# One training run under SLURM, on one node or several, that survives preemption, time limits and lost processes.
# Submit it from the root of the checkout; arguments are those of main.py:
#
#   sbatch --nodes=2 scripts/slurm/train.sh -cn fully_supervised data=fully_supervised_k400 output=runs/k400
#
#SBATCH --job-name=tc_clip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.txt
# A signal five minutes before the time limit, to this script alone, which passes it on.
#SBATCH --signal=B:USR1@300
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the root of the checkout}"
source scripts/slurm/run.sh

run_and_requeue "$@"
