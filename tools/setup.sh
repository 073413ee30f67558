#!/bin/sh
# Create .venv with gemirec (editable) and its developer tools. Run by make; safe to run again.
#
# torch comes first, and an existing one is kept: a wheel from UV_FIND_LINKS / PIP_FIND_LINKS if one lies there,
# otherwise the build that fits the machine (CUDA with an NVIDIA driver, the CPU build without).
#
#   PYTHON   interpreter to use (default: the first of python3, python3.12, python3.11, python3.13 that fits)
#   VENV     folder of the environment (default: .venv)
#   EXTRAS   extras to install (default: dev)
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-dev}
UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
export UV_FIND_LINKS PIP_DISABLE_PIP_VERSION_CHECK=1
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS

say() { printf 'setup: %s\n' "$*"; }

fail() { # what, got, fix
  printf 'setup failed: %s\n  got: %s\n  fix: %s\n' "$1" "$2" "$3" >&2
  exit 2
}

fits() { # is this interpreter one that gemirec supports, and can it make environments?
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 to 3.13 with the venv module was found" "$(python3 --version 2>&1 || echo 'no python3')" \
    "install one (on Debian: python3.11 python3.11-venv), or name it: make setup PYTHON=/path/to/python3.12"
}

has_torch() { "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; }

make_venv() {
  if [ -x "$VENV/bin/python" ] && fits "$VENV/bin/python"; then
    return
  fi
  python=$(find_python)
  say "environment in $VENV ($("$python" --version))"
  if has_torch "$python"; then # a machine with its own torch (a GPU image, say) keeps it
    say "the interpreter has torch: the environment sees it"
    "$python" -m venv --system-site-packages "$VENV"
  else
    "$python" -m venv "$VENV"
  fi
}

choose_installer() { # uv installs the set in seconds; pip where uv cannot be had, or where it would not see a system torch
  install="$VENV/bin/python -m pip install --quiet"
  uv=no
  if grep -q 'include-system-site-packages = true' "$VENV/pyvenv.cfg"; then
    return
  fi
  if [ -x "$VENV/bin/uv" ] || $install uv; then
    install="$VENV/bin/uv pip install --quiet --compile-bytecode --python $VENV/bin/python"
    uv=yes
  else
    say "uv could not be installed; going on with pip"
  fi
}

local_torch() { # version of a torch wheel for this interpreter in the find-links folders, if any
  tag=$("$VENV/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  for folder in ${UV_FIND_LINKS:-}; do
    for wheel in "$folder"/torch-*-"$tag"-*.whl; do
      if [ -f "$wheel" ]; then
        basename "$wheel" | cut -d- -f2
        return
      fi
    done
  done
}

install_torch() {
  if has_torch "$VENV/bin/python"; then
    return
  fi
  version=$(local_torch)
  if [ -n "$version" ]; then
    say "torch $version from the find-links folder"
    $install "torch==$version"
    return
  fi
  backend=cpu
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    backend=auto
  fi
  if [ "$uv" = yes ]; then
    say "torch for this machine (backend: $backend)"
    $install --torch-backend="$backend" torch && return
    say "that build could not be had; taking the default one"
  fi
  $install torch
}

make_venv
choose_installer
install_torch
say "gemirec[$EXTRAS]"
$install -e ".[$EXTRAS]"
"$VENV/bin/python" -c 'import gemirec'
touch "$VENV/.gemirec-ready"
say "ready"
