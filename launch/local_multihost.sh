#!/usr/bin/env bash
# Runs one training as N processes on this machine, as on N hosts: CPU devices, connected over loopback.
#
#   launch/local_multihost.sh N --config=configs/debug_tiny.py --workdir=runs/two_hosts [more flags of frozen_jax.main]
#
# DEVICES=4 launch/local_multihost.sh … gives each process four devices; the default is one. The first process's output
# is shown, the others' goes to WORKDIR/logs/process_1.log and so on. If one process fails, the others are ended. SIGTERM
# or an interrupt lets all save after the next step (exit status 143 or 130); a second interrupt ends them at once.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "the first argument is ${count:-missing}; it must be the number of processes"
shift
devices=${DEVICES:-1}
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "DEVICES is $devices; it must be the number of devices of each process"
workdir=''
for ((place = 1; place <= $#; place++)); do
  case ${!place} in
    --workdir=*) workdir=${!place#--workdir=} ;;
    --workdir) next=$((place + 1)) && workdir=${!next:-} ;;
  esac
done
[[ -n $workdir ]] || fail '--workdir is missing; for example --workdir=runs/two_hosts'

python=${PYTHON:-python}
mkdir -p "$workdir/logs"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

processes=()
end_all() {
  trap - INT TERM EXIT
  kill -TERM "${processes[@]}" 2>/dev/null || true
  # A process that waits for a dead one inside a computation does not hear the first signal.
  for _ in {1..20}; do
    kill -0 "${processes[@]}" 2>/dev/null || break
    sleep 0.2
  done
  kill -KILL "${processes[@]}" 2>/dev/null || true
}

# Hands the request on; the processes agree on a step, save it and end, each with status 143.
stop_all() {
  trap 'trap - EXIT; kill -KILL "${processes[@]}" 2>/dev/null; exit 130' INT
  trap '' TERM
  kill -TERM "${processes[@]}" 2>/dev/null || true
  while kill -0 "${processes[@]}" 2>/dev/null; do wait -n || true; done
  trap - EXIT
  exit "$1"
}
trap 'stop_all 130' INT
trap 'stop_all 143' TERM
trap end_all EXIT

for ((index = 0; index < count; index++)); do
  export JAX_PROCESS_ID=$index
  if ((index)); then
    "$python" -m frozen_jax.main "$@" >"$workdir/logs/process_$index.log" 2>&1 &
  else
    "$python" -m frozen_jax.main "$@" &
  fi
  processes+=($!)
done

for ((left = count; left > 0; left--)); do
  status=0
  wait -n || status=$?
  if ((status)); then
    printf 'error: a process ended with status %s, so the others are ended; see also %s/logs\n' "$status" "$workdir" >&2
    exit "$status"
  fi
done
trap - EXIT
