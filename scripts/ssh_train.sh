#!/usr/bin/env bash
# One training run on several machines by ssh, without a scheduler. All machines have this checkout, its .venv and the data
# at the same paths. The first machine writes `output`; put it on a shared disk if that machine can be lost.
#
#   NODES="alpha beta" GPUS=4 bash scripts/ssh_train.sh -cn zero_shot data=zero_shot_k400 output=/shared/runs/k400
#
# Ctrl-C stops all of them after the update, saved. Exit status: that of the first node (75: start it again to resume).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

read -r -a nodes <<<"${NODES:?list the machines: NODES=\"alpha beta\"}"
gpus="${GPUS:?set the number of GPUs of each machine: GPUS=4}"
endpoint="${nodes[0]}:${PORT:-29400}"
id="tc_clip_$$"
command="cd $(printf '%q' "$PWD") && export PATH=\$PWD/.venv/bin:\$PATH && exec bash scripts/torchrun.sh \
--nnodes=${#nodes[@]} --nproc_per_node=$gpus --max_restarts=${MAX_RESTARTS:-3} --rdzv_backend=c10d \
--rdzv_endpoint=$endpoint --rdzv_id=$id main.py$(printf ' %q' "$@")"

# setsid: Ctrl-C reaches only this script, which stops every machine.
pids=()
for node in "${nodes[@]}"; do
    setsid "${SSH:-ssh}" "$node" "$command" </dev/null &
    pids+=("$!")
done
stop_all() {
    local node
    for node in "${nodes[@]}"; do
        # The brackets keep pkill from matching its own shell.
        setsid "${SSH:-ssh}" "$node" "pkill -USR1 -f 'torchrun[.]sh .*rdzv_id=$id'" </dev/null
    done
}
trap stop_all INT TERM

status=0
for number in "${!pids[@]}"; do
    # A signal interrupts `wait`, which then returns another status; bash keeps that of a child that has ended.
    while wait "${pids[$number]}"; kill -0 "${pids[$number]}" 2>/dev/null; do :; done
    wait "${pids[$number]}" && code=0 || code=$?
    [[ "$number" -ne 0 ]] || status="$code"
done
exit "$status"
