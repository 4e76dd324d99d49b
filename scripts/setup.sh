# Sourced by scripts/demo and scripts/test. `setup` makes .venv with this tree installed in it, once;
# `setup dev` with the tools of the tests too. Sets ROOT and PYTHON. Says what it does on standard error only.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=$ROOT/.venv/bin/python

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {  # prints the first python that is 3.11 or newer
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "rawdiff needs Python 3.11 or newer; found $(python3 --version 2>/dev/null || echo none): install one, as python3 or python3.11"
}

make_venv() {
    local python
    if [ -d "$ROOT/.venv" ] && "$PYTHON" -m pip --version >/dev/null 2>&1; then
        new_enough "$PYTHON" ||
            fail "$ROOT/.venv holds $("$PYTHON" --version), older than 3.11: remove it and run this again"
        python=
    else
        python=$(find_python)
    fi
    say "Installing rawdiff and what it needs into $ROOT/.venv: the first time takes a minute or two, and downloads torch."
    [ -z "$python" ] || "$python" -m venv --clear "$ROOT/.venv" >&2 ||
        fail "$python could not make a virtual environment (Debian and Ubuntu: apt install python3-venv)"
}

setup() {  # [dev]
    local extra=${1:-} stamps=$ROOT/.venv/rawdiff-setup wanted stamp
    wanted=$ROOT$'\n'$(cd "$ROOT" && cksum constraints.txt pyproject.toml)
    for stamp in dev ${extra:-base}; do  # dev holds all of base
        if [ -x "$PYTHON" ] && [ "$(cat "$stamps-$stamp" 2>/dev/null)" = "$wanted" ]; then
            return
        fi
    done
    make_venv
    rm -f "$stamps-base" "$stamps-dev"
    (cd "$ROOT" && "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
        -c constraints.txt --config-settings editable_mode=compat -e ".${extra:+[$extra]}" >&2) ||
        fail "pip could not install rawdiff (its reason stands above): mend that and run this again"
    printf '%s\n' "$wanted" >"$stamps-${extra:-base}"
}
