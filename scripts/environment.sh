# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with what a requirements file asks for.
#
#   prepare_environment requirements.txt
#
# PYTHON names the interpreter that makes .venv (default: the first of python3, python3.11 ... that is new enough). What is
# installed is not installed again: .venv keeps a stamp, the hash of the requirements files and of the interpreter's version.
# Afterwards `python`, `torchrun`, `ruff` and `pytest` are those of .venv.

_fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the interpreter to make .venv with.
_find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        command -v "$PYTHON" >/dev/null || _fail "PYTHON=$PYTHON is not a program; name a Python 3.11 or newer"
        _new_enough "$PYTHON" || _fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1), but Python 3.11 or newer is needed"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if command -v "$candidate" >/dev/null && _new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    _fail "no Python 3.11 or newer among python3, python3.11 ... python3.14; install one, or name it: PYTHON=/path/to/python bash ${0}"
}

_make_venv() {
    local python
    python="$(_find_python)" || exit 1
    echo "making .venv with $("$python" --version)"
    # --clear: what a making that was stopped half-way left behind goes.
    "$python" -m venv --clear .venv ||
        _fail "'$python -m venv' failed; on Debian or Ubuntu: apt install python3-venv; then start again"
}

_stamp() {
    python -c 'import hashlib, sys
content = sys.version.encode() + b"".join(open(name, "rb").read() for name in sys.argv[1:])
print(hashlib.sha256(content).hexdigest())' "$@"
}

prepare_environment() {
    local requirements="$1" stamp file
    if ! { [[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
        _make_venv
    elif ! _new_enough .venv/bin/python; then
        _fail ".venv has $(.venv/bin/python --version), but Python 3.11 or newer is needed; remove .venv and start again"
    fi
    export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
    unset PYTHONHOME
    hash -r

    stamp="$(_stamp pyproject.toml requirements.txt "$requirements")"
    file=".venv/.installed-$requirements"
    if [[ "$(cat "$file" 2>/dev/null)" == "$stamp" ]]; then
        return
    fi
    echo "installing $requirements into .venv"
    python -m pip install --quiet --no-input --disable-pip-version-check -r "$requirements" -e . ||
        _fail "installing $requirements failed (see above); is a package index within reach?"
    echo "$stamp" >"$file"
    # Every other requirements file starts with `-r requirements.txt`.
    _stamp pyproject.toml requirements.txt requirements.txt >.venv/.installed-requirements.txt
}
