#!/usr/bin/env bash
# torchrun with the exit status of the run, and with its signals. Arguments are torchrun's:
#
#   bash scripts/torchrun.sh --nproc_per_node=4 --max_restarts=3 main.py -cn zero_shot data=zero_shot_k400 output=runs/first
#
# Exit status: 0 done; 75 stopped by a signal and saved, start it again and it goes on; anything else is torchrun's.
#
# SIGTERM, SIGUSR1 and Ctrl-C go to the training processes, which finish their update and save; torchrun itself would take
# them for a reason to kill everything 30 s later, would restart processes that leave with a status of their own, and has
# exit status 1 for all of it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN_EXIT_FILE="$(mktemp)"
export RUN_EXIT_FILE
trap 'rm -f "$RUN_EXIT_FILE"' EXIT
command -v "${TORCHRUN:-torchrun}" >/dev/null || { echo "torchrun.sh: torchrun is not on the PATH: activate .venv" >&2; exit 2; }

stopped=
trap 'stopped=1' TERM INT USR1

# A session of its own: what a terminal or a scheduler sends to this script's group reaches torchrun through this script
# alone. Ignored signals stay ignored in what is started; the training processes set their own handlers later.
(trap '' USR1; exec setsid "${TORCHRUN:-torchrun}" "$@") &
launcher=$!

until [[ -n "$stopped" ]] || ! kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher"
    status=$?
done
while [[ -n "$stopped" ]] && kill -0 "$launcher" 2>/dev/null; do
    # Again and again: a process that is just starting does not listen yet.
    mapfile -t workers < <(pgrep -P "$launcher")
    [[ ${#workers[@]} -eq 0 ]] || kill -USR1 "${workers[@]}" 2>/dev/null
    sleep 2
done
if [[ -n "$stopped" ]]; then
    wait "$launcher"
    status=$?
fi

if [[ -s "$RUN_EXIT_FILE" ]]; then
    exit "$(<"$RUN_EXIT_FILE")"
fi
exit "$status"
