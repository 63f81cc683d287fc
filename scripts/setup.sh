# Shared by scripts/demo, scripts/test and .ci/run: finds a Python and makes the virtual environments.
# Source it; it defines functions and changes to the root of the repository.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'; else BOLD='' RED='' PLAIN=''; fi

say() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN" >&2; }

fail() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# is_python PROGRAM MINOR: does PROGRAM run, is it CPython 3.MINOR or later, and can it make a venv with pip?
is_python() {
    "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, $2))" >/dev/null 2>&1
}

# find_python MINOR...: print the first interpreter found, trying the exact versions in the order given and then python3.
find_python() {
    local minor candidate
    local lowest=$1
    for minor in "$@"; do [ "$minor" -lt "$lowest" ] && lowest=$minor; done
    for minor in "$@"; do
        for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
            if is_python "$candidate" "$minor"; then "$candidate" -c 'import sys; print(sys.executable)'; return; fi
        done
    done
    for candidate in python3 python; do
        if is_python "$candidate" "$lowest"; then "$candidate" -c 'import sys; print(sys.executable)'; return; fi
    done
    return 1
}

digest() { cat "$@" | cksum | tr -d ' \t'; }

# install VENV PYTHON PIP_ARGUMENT...: make VENV if it is missing or broken, and pip install into it.
install() {
    local venv=$1 python=$2 log
    shift 2
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    log=$(mktemp)
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2>"$log"; then
        cat "$log" >&2
        rm -f "$log"
        fail "pip could not install into $venv (its messages are above)." \
            "Is a package index reachable? Run again when it is; or 'rm -rf $venv' to start over."
    fi
    rm -f "$log"
}

# setup_venv [EXTRAS]: .venv holds the package itself (editable) with the pinned dependencies. Quick when nothing changed.
setup_venv() {
    local extras=${1:-} python want installed
    want="$(digest pyproject.toml constraints.txt .build/build_backend.py $(find serving/rpc/protos -name "*.proto" | sort)) in $ROOT with"
    installed=$(cat .venv/.installed 2>/dev/null || true)
    # What was installed with extras serves those who need none.
    if [[ $installed == "$want "*"$extras"* ]] && .venv/bin/distaff --version >/dev/null 2>&1; then return; fi
    python=$(find_python 12 13 14) || fail "no Python 3.12 or later with venv and pip was found." \
        "Install one (https://www.python.org/downloads/, 'pyenv install 3.12', or your system's packages, python3-venv included) and run again."
    say "Setting up .venv with $("$python" --version) (a few minutes the first time)"
    # The variables reach the environment in which pip builds the package; the option alone would not.
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
        install .venv "$python" --constraint constraints.txt --editable ".${extras:+[$extras]}"
    echo "$want [$extras]" >.venv/.installed
}

# setup_torch_venv: .venv-torch sees what .venv has, and torch with torch_xla and what these need in addition.
setup_torch_venv() {
    local stamp=.venv-torch/.installed want packages
    want="$(digest constraints-torch.txt) beside $(cat .venv/.installed)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
    say "Setting up .venv-torch: torch and torch_xla (6 GB, some minutes the first time)"
    install .venv-torch .venv/bin/python --no-deps --requirement constraints-torch.txt
    packages=$(.venv-torch/bin/python -c 'import site; print(site.getsitepackages()[0])')
    # A folder of .pth files, the editable install's among them, is not enough on the path: it has to be added as a site.
    .venv/bin/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
        >"$packages/distaff-tests.pth"
    echo "$want" >"$stamp"
}

# setup_oracle_venv: .venv-oracle holds torch and transformers, which remake the golden files.
setup_oracle_venv() {
    local python stamp=.venv-oracle/.installed want
    want=$(digest constraints-oracle.txt)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
    python=$(find_python 11 12 13) || fail "no Python 3.11 or later with venv and pip was found for the oracle." \
        "Install one and run again."
    say "Setting up .venv-oracle with $("$python" --version): torch and transformers (some minutes the first time)"
    install .venv-oracle "$python" --requirement constraints-oracle.txt
    echo "$want" >"$stamp"
}
