#!/usr/bin/env bash
# Runs on TPU instances of Compute Engine (v5p, v6e, TPU7x and later): one machine, or all machines of a slice.
#
#   launch/compute_engine.sh VERB NAME --project=ID --zone=ZONE --machine_type=TYPE --topology=AxB[xC] [FLAGS]
#                            [-- COMMAND...]
#
# VERB: create   get the machines: one instance, or for a larger topology a managed instance group
#       setup    copy this checkout (HEAD) to them, install it, mount --storage
#       run      start COMMAND on all of them; it goes on when this ends
#       logs     follow its output
#       resume   make the machines anew if some are gone (preempted), then run; the same COMMAND continues from its
#                checkpoints
#       delete   give the machines back
# FLAGS: --machine_type=tpu7x-standard-4t   or ct6e-standard-8t, ct5p-hightpu-4t, …; -4t is 4 chips a machine
#        --topology=2x2x1                   chips of the whole slice; with more than one machine's, a group of machines
#        --spot                             cheaper; may be preempted
#        --storage=gs://BUCKET              or HOST:/SHARE (NFS); mounted at /mnt/runs, outlives the machines
#        --dry_run                          print the commands, run none

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

machine_type='' topology='' spot=''
parse 'machine_type topology' 'spot' "$@"
need machine_type topology
[[ $machine_type =~ ^[a-z0-9-]+-([0-9]+)t$ ]] ||
  fail "--machine_type=$machine_type does not end in its number of chips, as tpu7x-standard-4t and ct6e-standard-8t do"
chips_per_machine=${BASH_REMATCH[1]}
[[ $topology =~ ^[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?$ ]] ||
  fail "--topology=$topology does not look like 2x4 or 2x2x2"
chips=$((${topology//x/*}))
((chips % chips_per_machine == 0)) ||
  fail "--topology=$topology has $chips chips, no multiple of the $chips_per_machine of --machine_type=$machine_type"
machines=$((chips / chips_per_machine))

region=${zone%-*}
where=("--project=$project" "--zone=$zone")
case $machine_type in
  ct5p-* | ct6e-*) image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e ;;
  *) image=ubuntu-accel-2404-amd64-tpu-tpu7x ;;
esac

# Prints the command that lists the machines of this name, one a line; of those that also match $1, if given.
list_machines() {
  quote gcloud compute instances list "--project=$project" "--zones=$zone" "--filter=labels.frozen_jax=$name${1:-}" \
    '--format=value(name)'
}

# on_each WORD…: adds a command for every machine, whose name stands for @INSTANCE@; `grep` fails if there is none.
on_each() { line "$(list_machines) | grep . | xargs -P 32 -I @INSTANCE@ $(quote "$@")"; }

# A new machine answers only after a while: ssh itself tries again, once a second.
copy_to_workers() { on_each gcloud compute scp "$1" "@INSTANCE@:$2" "${where[@]}" --scp-flag=-oConnectionAttempts=120; }

on_workers() { on_each gcloud compute ssh @INSTANCE@ "${where[@]}" --command="$1"; }

add_creation() {
  local what=("--machine-type=$machine_type" "--image-family=$image" --image-project=ubuntu-os-accelerator-images
    --boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform "--labels=frozen_jax=$name")
  [[ -z $spot ]] || what+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  if ((machines == 1)); then
    add gcloud compute instances create "$name" "${where[@]}" "${what[@]}"
    return
  fi
  add gcloud compute resource-policies create workload-policy "$name" "--project=$project" "--region=$region" \
    --type=high-throughput "--accelerator-topology=$topology"
  add gcloud compute instance-templates create "$name" "--project=$project" "${what[@]}"
  add gcloud compute instance-groups managed create "$name" "${where[@]}" "--template=$name" "--size=$machines" \
    "--workload-policy=projects/$project/regions/$region/resourcePolicies/$name" \
    --default-action-on-vm-failure=do-nothing
  add gcloud compute instance-groups managed wait-until "$name" "${where[@]}" --stable
}

add_deletion() {
  if ((machines == 1)); then
    add gcloud compute instances delete "$name" "${where[@]}" --quiet
    return
  fi
  add gcloud compute instance-groups managed delete "$name" "${where[@]}" --quiet
  add gcloud compute instance-templates delete "$name" "--project=$project" --quiet
  add gcloud compute resource-policies delete "$name" "--project=$project" "--region=$region" --quiet
}

case $verb in
  create) add_creation ;;
  setup) add_installation ;;
  run) on_workers "$(worker run "${command[@]}")" ;;
  logs) on_workers "$(worker logs)" ;;
  resume)
    line "running=\$($(list_machines ' AND status=RUNNING') | wc -l)"
    line "if [ \"\$running\" -lt $machines ]; then"
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
finish gcloud git xargs
