#!/usr/bin/env bash
# One training run on several machines that ssh reaches, without a scheduler. All have this checkout, with its .venv, and
# the data at the same paths; `output` lies on a disk that the first one sees (a shared one, to survive losing it).
#
#   NODES="alpha beta" GPUS=4 bash scripts/ssh_train.sh -cn zero_shot data=zero_shot_k400 output=/shared/runs/k400
#
# Ctrl-C stops all of them after the update, saved. Exit status: that of the first node (75: start again to go on).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

read -r -a nodes <<<"${NODES:?name the machines, the first one first: NODES=\"alpha beta\"}"
gpus="${GPUS:?say how many GPUs each machine has: GPUS=4}"
endpoint="${nodes[0]}:${PORT:-29400}"
id="tc_clip_$$"
command="cd $(printf '%q' "$PWD") && export PATH=\$PWD/.venv/bin:\$PATH && exec bash scripts/torchrun.sh \
--nnodes=${#nodes[@]} --nproc_per_node=$gpus --max_restarts=${MAX_RESTARTS:-3} --rdzv_backend=c10d \
--rdzv_endpoint=$endpoint --rdzv_id=$id main.py$(printf ' %q' "$@")"

# Sessions of their own: Ctrl-C is for this script, which asks every machine to stop.
pids=()
for node in "${nodes[@]}"; do
    setsid "${SSH:-ssh}" "$node" "$command" </dev/null &
    pids+=("$!")
done
ask_to_stop() {
    local node
    for node in "${nodes[@]}"; do
        # Brackets, so that the shell that runs this does not find itself.
        setsid "${SSH:-ssh}" "$node" "pkill -USR1 -f 'torchrun[.]sh .*rdzv_id=$id'" </dev/null
    done
}
trap ask_to_stop INT TERM

status=0
for number in "${!pids[@]}"; do
    code=0
    while kill -0 "${pids[$number]}" 2>/dev/null; do
        wait "${pids[$number]}"
        code=$?
    done
    [[ "$number" -ne 0 ]] || status="$code"
done
exit "$status"
