#!/usr/bin/env bash
# Runs on a Cloud TPU VM or on all machines of a slice, through the Cloud TPU API (v2 to v6e; not TPU7x).
#
#   launch/tpu_vm.sh VERB NAME --project=ID --zone=ZONE --accelerator_type=TYPE [FLAGS] [-- COMMAND...]
#
# VERB: create   get the machines
#       setup    copy this checkout (HEAD) to them, install it, mount --storage
#       run      start COMMAND on all of them; it goes on when this ends
#       logs     follow its output
#       resume   make the machines anew if they are gone (preempted), then run; the same COMMAND continues from its
#                checkpoints
#       delete   give the machines back
# FLAGS: --accelerator_type=v5litepod-8   or v4-8, v5p-8, v6e-8, …; for create and resume
#        --queued                         wait in line for capacity: queued resources
#        --spot                           cheaper; may be preempted
#        --storage=gs://BUCKET            or HOST:/SHARE (NFS); mounted at /mnt/runs, outlives the machines
#        --dry_run                        print the commands, run none

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator_type='' queued='' spot=''
parse 'accelerator_type' 'queued spot' "$@"
tpu=(gcloud compute tpus)
where=("--project=$project" "--zone=$zone")

runtime_version() {
  case $accelerator_type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "--accelerator_type=$accelerator_type: the Cloud TPU API has v2- to v6e-N, such as v5litepod-8 or v6e-8" ;;
  esac
}

copy_to_workers() { add "${tpu[@]}" tpu-vm scp "$1" "$name:$2" "${where[@]}" --worker=all; }

on_workers() { add "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

add_creation() {
  local version
  need accelerator_type
  version=$(runtime_version)
  local what=("${where[@]}" "--accelerator-type=$accelerator_type")
  if [[ -z $queued ]]; then
    add "${tpu[@]}" tpu-vm create "$name" "${what[@]}" "--version=$version" ${spot:+--spot}
    return
  fi
  add "${tpu[@]}" queued-resources create "$name" "--node-id=$name" "${what[@]}" "--runtime-version=$version" \
    ${spot:+--spot}
  line 'state='
  line "while [ \"\$state\" != ACTIVE ]; do"
  line '  sleep 30'
  line "  state=\$($(quote "${tpu[@]}" queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'))"
  line "  case \$state in FAILED | SUSPEND*) echo \"the request is \$state\" >&2 && exit 1 ;; esac"
  line 'done'
}

add_deletion() {
  if [[ -n $queued ]]; then
    add "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    add "${tpu[@]}" tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

case $verb in
  create) add_creation ;;
  setup) add_installation ;;
  run) on_workers "$(worker run "${command[@]}")" ;;
  logs) on_workers "$(worker logs)" ;;
  resume)
    line "state=\$($(quote "${tpu[@]}" tpu-vm list "${where[@]}" --filter="name~(^|/)$name\$" --format='value(state)'))"
    line "if [ \"\$state\" != READY ]; then"
    indent='  '
    on_failure=' || true' add_deletion
    add_creation
    add_installation
    indent=''
    line 'fi'
    on_workers "$(worker run "${command[@]}")"
    ;;
  delete) add_deletion ;;
esac
finish gcloud git
