# Sourced by quickstart.sh, test.sh and .ci/run: a virtual environment in .venv with what a requirements file lists.
#
#   prepare_environment requirements.txt
#
# PYTHON names the interpreter that creates .venv (default: the first suitable one of python3, python3.13 ...). What is
# installed is not installed again: .venv keeps a stamp, a hash of the requirements and of the interpreter's version.
# Afterwards `python`, `torchrun`, `ruff` and `pytest` are those of .venv.

_fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The range of requires-python in pyproject.toml.
_is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Prints the interpreter to create .venv with.
_find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        command -v "$PYTHON" >/dev/null || _fail "PYTHON=$PYTHON is not a program; name a Python 3.11, 3.12 or 3.13"
        _is_supported "$PYTHON" || _fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null && _is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    _fail "no Python 3.11, 3.12 or 3.13 on the PATH; install one, or name it: PYTHON=/path/to/python bash ${0}"
}

_create_venv() {
    local python
    python="$(_find_python)" || exit 1
    echo "creating .venv with $("$python" --version)"
    # --clear removes what an interrupted start left behind.
    "$python" -m venv --clear .venv ||
        _fail "'$python -m venv' failed; on Debian or Ubuntu: apt install python3-venv; then start again"
}

_stamp() {
    python -c 'import hashlib, sys
content = sys.version.encode() + b"".join(open(name, "rb").read() for name in sys.argv[1:])
print(hashlib.sha256(content).hexdigest())' pyproject.toml setup.py constraints.txt "$@"
}

prepare_environment() {
    local requirements="$1" stamp file
    if ! { [[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
        _create_venv
    elif ! _is_supported .venv/bin/python; then
        _fail ".venv has $(.venv/bin/python --version); Python 3.11, 3.12 or 3.13 is needed; remove .venv and start again"
    fi
    export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
    unset PYTHONHOME
    hash -r

    stamp="$(_stamp "$requirements")"
    file=".venv/.installed-$requirements"
    if [[ "$(cat "$file" 2>/dev/null)" == "$stamp" ]]; then
        return
    fi
    echo "installing $requirements into .venv"
    python -m pip install --quiet --no-input --disable-pip-version-check -r "$requirements" ||
        _fail "installing $requirements failed (see above); can pip reach a package index?"
    echo "$stamp" >"$file"
    # Every requirements file installs what requirements.txt does.
    _stamp requirements.txt >.venv/.installed-requirements.txt
}

# usage FILE: print the comment at the top of a script.
usage() {
    sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$1"
}
