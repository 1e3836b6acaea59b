# Makes the virtual environment that demo.sh and test.sh share. Sourced, not run:
#
#     source scripts/environment.sh
#     make_environment            # the package
#     make_environment test       # the package with the extra of that name
#
# The environment lies in .venv beside the README. It is made once; later calls return at once unless setup.cfg or
# pyproject.toml has changed. PYTHON names the interpreter to make it from (default: python3). pip's own settings
# (PIP_CONSTRAINT, PIP_INDEX_URL, ...) work as always.
# shellcheck shell=bash

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv

say() {
    printf '%s\n' "$*" >&2
}

_has_pip() {
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

# An empty environment that is known to be ours from its first moment on, so that an unfinished one may be removed.
_start_anew() {
    rm -rf "$VENV"
    mkdir "$VENV"
    printf 'unfinished\n' >"$VENV/.datafree-root"
}

_create_environment() {
    local python=$1 borrowed status=0
    _start_anew
    say "Making $VENV with $("$python" --version 2>&1) ..."
    if ! "$python" -m venv "$VENV" >/dev/null 2>&1 || ! _has_pip; then
        # A bare Debian has venv without ensurepip. virtualenv brings its own pip.
        _start_anew
        say "python -m venv does not work here; taking virtualenv."
        if ! "$python" -m virtualenv --quiet "$VENV" 2>/dev/null; then
            # Into a folder of its own: the system's Python stays as it is, and Debian refuses to install into it anyhow.
            borrowed=$(mktemp -d)
            "$python" -m pip install --quiet --target "$borrowed" virtualenv \
                && PYTHONPATH=$borrowed "$python" -m virtualenv --quiet "$VENV" || status=$?
            rm -rf "$borrowed"
            if ((status != 0)); then
                say "Could not make a virtual environment. Install python3-venv or virtualenv and try again."
                return 1
            fi
        fi
    fi
    printf '%s\n' "$ROOT" >"$VENV/.datafree-root"
}

# Leaves a usable .venv: the one that is there, or a new one. Somebody else's is used but never removed.
_ensure_environment() {
    local python=$1
    if [[ -e $VENV && ! -e $VENV/.datafree-root ]]; then
        _has_pip && return 0
        say "$VENV was not made by this script and has no working pip. Move it away and try again."
        return 1
    fi
    # The scripts of an environment hold absolute paths, so one that was moved with its folder is made again.
    [[ "$(cat "$VENV/.datafree-root" 2>/dev/null)" == "$ROOT" ]] && _has_pip && return 0
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say "Python 3.10 or newer is needed; '$python' is not one. Name another: PYTHON=/path/to/python3.12 bash $0"
        return 1
    fi
    _create_environment "$python"
}

# make_environment [EXTRA]
make_environment() {
    local extra=${1:-} python=${PYTHON:-python3} wanted stamp
    wanted=$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum)
    stamp=$VENV/.datafree-installed${extra:+-$extra}
    _ensure_environment "$python" || return 1
    [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]] && return 0
    say "Installing datafree${extra:+[$extra]} into $VENV (the first time this fetches PyTorch) ..."
    # Editable installs from setup.cfg need pip 21.3; this line does nothing where that is there.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "pip>=21.3" || return 1
    "$VENV/bin/python" -m pip install --disable-pip-version-check --editable "$ROOT${extra:+[$extra]}" >&2 || return 1
    # The package with an extra is also the package without.
    printf '%s\n' "$wanted" | tee "$stamp" >"$VENV/.datafree-installed"
}
