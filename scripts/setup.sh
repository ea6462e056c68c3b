#!/usr/bin/env bash
# Brings a Debian 12 machine to where coppice builds: Debian packages and a Python environment.
#
# usage: scripts/setup.sh
#
# Installs only what is missing, so a second call does nothing. Packages need root; without it the
# missing ones are named and the exit code is 1. The environment is .venv, about 5 GB (torch with
# its CUDA libraries).

set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  build-essential g++ cmake ninja-build ccache pkg-config git python3 python3-venv python3-pip time
  libtbb-dev liburing-dev libzstd-dev libxxhash-dev libhdf5-dev libssl-dev
  libgtest-dev libgmock-dev libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libfmt-dev
  libgoogle-perftools-dev
  clang-format clang-tidy
)

is_installed() {
  [[ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" == "install ok installed" ]]
}

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "setup: all ${#packages[@]} Debian packages are there"
    return
  fi
  if ((EUID != 0)); then
    echo "setup: missing Debian packages: ${missing[*]}" >&2
    echo "setup: not root; run as root: apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

install_python() {
  local stamp=.venv/requirements.sha256 wanted
  wanted=$(sha256sum scripts/requirements.txt | cut -d' ' -f1)
  if [[ -x .venv/bin/python && -f $stamp && "$(<"$stamp")" == "$wanted" ]]; then
    echo "setup: .venv matches scripts/requirements.txt"
    return
  fi
  if [[ ! -x .venv/bin/pip ]]; then
    echo "setup: making .venv"
    python3 -m venv --clear .venv
  fi
  echo "setup: installing scripts/requirements.txt into .venv"
  .venv/bin/pip install --quiet --disable-pip-version-check -r scripts/requirements.txt
  # Last, so that an interrupted installation is taken up again by the next call.
  echo "$wanted" >"$stamp"
}

case "${1:-}" in
  "") ;;
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *)
    echo "setup: unknown argument '$1', try --help" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "setup: no dpkg-query: this script is for Debian 12; elsewhere install: ${packages[*]}" >&2
  exit 1
fi
install_packages
install_python
