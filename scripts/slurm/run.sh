# Sourced by train.sh and array.sh.
#
#   run_and_requeue ARGUMENTS_OF_MAIN...
#
# Starts scripts/torchrun.sh on every node, passes SIGUSR1 and SIGTERM on to it, and requeues the job if it was stopped and
# saved (status 75). MAX_RESTARTS: restarts after lost processes within one allocation (default 3).

run_and_requeue() {
    local nodes head port gpus step status
    nodes="${SLURM_JOB_NUM_NODES:-1}"
    head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    # A different port for each job: two jobs can share a node.
    port=$((20000 + SLURM_JOB_ID % 20000))
    gpus="${SLURM_GPUS_ON_NODE:-1}"

    srun --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 \
        bash scripts/torchrun.sh --nnodes="$nodes" --nproc_per_node="$gpus" --max_restarts="${MAX_RESTARTS:-3}" \
        --rdzv_backend=c10d --rdzv_endpoint="$head:$port" --rdzv_id="$SLURM_JOB_ID" main.py "$@" &
    step=$!
    # srun passes the signal to its tasks.
    trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
    # A signal interrupts `wait`, which then returns another status; bash keeps that of a child that has ended.
    while wait "$step"; kill -0 "$step" 2>/dev/null; do :; done
    trap - USR1 TERM
    wait "$step" && status=0 || status=$?

    if [[ "$status" -eq 75 ]]; then
        echo "stopped and saved: requeued"
        scontrol requeue "$SLURM_JOB_ID"
        return 0
    fi
    return "$status"
}
