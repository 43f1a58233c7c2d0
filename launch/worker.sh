#!/usr/bin/env bash
# What the launchers do on a machine with a TPU; it lies there in ~/frozen_jax.
#
#   launch/worker.sh setup [gs://BUCKET | HOST:/SHARE]   install the package with its TPU extra; mount at /mnt/runs
#   launch/worker.sh run COMMAND...                      start it in the background, output to ~/frozen_jax.log
#   launch/worker.sh logs                                follow that output
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=$HOME/frozen_jax.log
mount_point=/mnt/runs
verb=${1:?setup, run or logs}
shift

install_package() {
  # The images' own Python is 3.10, too old; uv brings one.
  if ! [[ -x $HOME/.local/bin/uv ]]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  "$HOME/.local/bin/uv" venv --quiet --allow-existing --python=3.12 .venv
  "$HOME/.local/bin/uv" pip install --quiet --python=.venv/bin/python --editable '.[tpu]'
}

mount_storage() {
  local key=/usr/share/keyrings/cloud.google.asc source
  if mountpoint --quiet "$mount_point"; then return; fi
  sudo mkdir -p "$mount_point"
  case $1 in
    gs://*)
      if ! type -P gcsfuse >/dev/null; then
        curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
        source="deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
        echo "$source" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        sudo apt-get update -qq
        sudo apt-get install -qq -y gcsfuse
      fi
      sudo chown "$(id -u)" "$mount_point"
      gcsfuse --implicit-dirs "${1#gs://}" "$mount_point"
      ;;
    *:/*)
      sudo apt-get update -qq
      sudo apt-get install -qq -y nfs-common
      sudo mount -t nfs "$1" "$mount_point"
      sudo chown "$(id -u)" "$mount_point"
      ;;
    *)
      echo "error: storage is '$1'; it must be gs://BUCKET or HOST:/SHARE" >&2
      exit 1
      ;;
  esac
}

case $verb in
  setup)
    install_package
    if (($#)); then mount_storage "$1"; fi
    ;;
  run)
    # Detached, so that it outlives the connection. The log says how it ended, with 128 + the signal for a kill.
    # shellcheck disable=SC2016
    PATH=$PWD/.venv/bin:$PATH nohup setsid bash -c '
      printf "%s started: %s\n" "$(date -u +%FT%TZ)" "$*"
      env "$@" && status=0 || status=$?
      printf "%s ended with exit status %s\n" "$(date -u +%FT%TZ)" "$status"
    ' worker "$@" >>"$log" 2>&1 </dev/null &
    ;;
  logs) tail -n 50 -F "$log" | sed -u "s/^/$(hostname): /" ;;
  *)
    echo "error: unknown verb '$verb'; it is one of setup, run, logs" >&2
    exit 1
    ;;
esac
