#!/usr/bin/env bash
# torchrun that passes on the signals to the run and returns the run's exit status. Arguments are torchrun's:
#
#   bash scripts/torchrun.sh --nproc_per_node=4 --max_restarts=3 main.py -cn zero_shot data=zero_shot_k400 output=runs/first
#
# Exit status: 0 done; 75 stopped by a signal and saved, start it again to resume; anything else is torchrun's.
#
# SIGTERM, SIGUSR1 and Ctrl-C go to the training processes, which finish their update and save. torchrun alone would kill
# all processes 30 s after such a signal, would restart processes that end with status 75, and would return status 1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN_EXIT_FILE="$(mktemp)"
export RUN_EXIT_FILE
trap 'rm -f "$RUN_EXIT_FILE"' EXIT
command -v "${TORCHRUN:-torchrun}" >/dev/null || { echo "torchrun.sh: torchrun is not on the PATH: activate .venv" >&2; exit 2; }

# If this script is killed, torchrun gets SIGTERM (Linux), and the training processes stop as they do for any signal.
with_parent=(env)
! command -v setpriv >/dev/null || with_parent=(setpriv --pdeathsig TERM)

stopped=
trap 'stopped=1' TERM INT USR1

# setsid: signals that a terminal or a scheduler sends to this script's process group reach torchrun only through this
# script. Child processes inherit the ignored signal; the training processes set their own handlers later.
(trap '' USR1; exec "${with_parent[@]}" setsid "${TORCHRUN:-torchrun}" "$@") &
launcher=$!

# A signal interrupts `wait`, which then returns another status; bash keeps that of a child that has ended.
while wait "$launcher"; status=$?; [[ -z "$stopped" ]] && kill -0 "$launcher" 2>/dev/null; do :; done
while [[ -n "$stopped" ]] && kill -0 "$launcher" 2>/dev/null; do
    # Repeatedly, because a process that is just starting has no handler yet.
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
