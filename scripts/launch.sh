# Sourced by scripts/train/*.sh and scripts/eval/*.sh.
#
#   --dry-run as the first argument of a script prints its commands and does not run them
#   GPUS       number of processes, one per GPU (4, as published)
#   RUNS       folder of the runs (runs)
#   DATA       data sets, if a script has several (as in DATA="hmdb51 ucf101")
#   SHOTS      training videos per class in few-shot (2 4 8 16)
#   BASES      training lists in base-to-novel (1 2 3)
#   CHECKPOINT weights to start from in the (P) rows (the zero-shot run's best.pth)
# All other arguments are added to every command: bash scripts/train/zero_shot.sh num_workers=16
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    # The comments at the top of the script and of this file.
    for file in "$0" "${BASH_SOURCE[0]}"; do sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$file"; done
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
GPUS="${GPUS:-4}"
RUNS="${RUNS:-runs}"
SHOTS="${SHOTS:-2 4 8 16}"
BASES="${BASES:-1 2 3}"
CHECKPOINT="${CHECKPOINT:-$RUNS/zero_shot/k400/best.pth}"
DRY_RUN=
if [[ "${1:-}" == --dry-run ]]; then
    DRY_RUN=1
    shift
fi
EXTRA=("$@")

launch() {
    local command=(torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node="$GPUS" main.py "$@" "${EXTRA[@]}")
    echo "${command[@]}"
    if [[ -z "$DRY_RUN" ]]; then
        "${command[@]}"
    fi
}

# train RUN -cn PROTOCOL key=value ...: train into a folder of $RUNS.
train() {
    local run="$RUNS/$1"
    launch "${@:2}" output="$run"
}

# evaluate RUN -cn PROTOCOL key=value ...: test the best checkpoint of a folder of $RUNS.
evaluate() {
    local run="$RUNS/$1"
    launch "${@:2}" eval=test resume="$run/best.pth" output="$run/eval"
}

# each_shot train|evaluate FOLDER SUFFIX "DATA SETS" key=value ...
each_shot() {
    local data shot
    for data in ${DATA:-$4}; do
        for shot in $SHOTS; do
            "$1" "$2/$data$3/shot$shot" -cn few_shot data="few_shot_$data$3" shot="$shot" "${@:5}"
        done
    done
}

# each_base train|evaluate FOLDER SUFFIX "DATA SETS" key=value ...
each_base() {
    local data base
    for data in ${DATA:-$4}; do
        for base in $BASES; do
            "$1" "$2/$data$3/seed$base" -cn base2novel data="base2novel_$data$3" base="$base" "${@:5}"
        done
    done
}
