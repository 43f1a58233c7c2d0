#!/usr/bin/env bash
# Runs on TPU slices of Google Kubernetes Engine through xpk (v4 to TPU7x and later).
#
#   launch/gke.sh VERB NAME --project=ID --zone=ZONE --tpu_type=TYPE [FLAGS] [-- COMMAND...]
#
# VERB: create   make a cluster NAME with the slices, and attach --storage
#       setup    build an image of this checkout (HEAD) and push it to --image
#       run      submit COMMAND as the workload NAME, on all machines; Kubernetes restarts it after preemption
#       logs     follow its output
#       resume   submit it anew, for when it has ended; the same COMMAND continues from its checkpoints
#       delete   delete the cluster with all that runs in it
# FLAGS: --tpu_type=v5litepod-16     or v5p-8, v6e-8, tpu7x-2x2x1, …; for create, run and resume
#        --num_slices=1              more than one: multislice
#        --image=REGION-docker.pkg.dev/ID/REPOSITORY/frozen_jax:TAG   for setup, run and resume
#        --spot                      cheaper; may be preempted
#        --storage=gs://BUCKET       mounted at /mnt/runs; outlives the cluster
#        --dry_run                   print the commands, run none

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tpu_type='' num_slices='' image='' spot=''
parse 'tpu_type num_slices image' 'spot' "$@"
num_slices=${num_slices:-1}
[[ $num_slices =~ ^[1-9][0-9]*$ ]] || fail "--num_slices=$num_slices is not a whole number above 0"
[[ -z $storage || $storage == gs://* ]] ||
  fail "--storage=$storage: on GKE a bucket, gs://NAME; attach Filestore with 'xpk storage attach'"
where=("--project=$project" "--zone=$zone")
slices=("--tpu-type=$tpu_type" "--num-slices=$num_slices")

# 100 restarts: preemption costs one each. `exec`, so that the signal that announces it reaches Python.
add_workload() {
  need tpu_type image
  add xpk workload create "--workload=$name" "--cluster=$name" "${where[@]}" "${slices[@]}" "--docker-image=$image" \
    --max-restarts=100 --command="$(quote exec env "${command[@]}")"
}

case $verb in
  create)
    need tpu_type
    if [[ -n $spot ]]; then capacity=--spot; else capacity=--on-demand; fi
    add xpk cluster create "--cluster=$name" "${where[@]}" "${slices[@]}" "$capacity" \
      ${storage:+--enable-gcsfuse-csi-driver}
    if [[ -n $storage ]]; then
      add xpk storage attach runs "--cluster=$name" "${where[@]}" --type=gcsfuse "--bucket=${storage#gs://}" --size=1 \
        --mount-point=/mnt/runs --readonly=false --auto-mount=true
    fi
    ;;
  setup)
    need image
    line "git archive HEAD | $(quote docker build "--tag=$image" --file=launch/Dockerfile -)"
    add docker push "$image"
    ;;
  run) add_workload ;;
  logs)
    add gcloud container clusters get-credentials "$name" "--project=$project" "--location=${zone%-*}"
    add kubectl logs "--selector=xpk.google.com/workload=$name" --all-containers --prefix --follow --tail=50 \
      --max-log-requests=1024
    ;;
  resume)
    on_failure=' || true' add xpk workload delete "--workload=$name" "--cluster=$name" "${where[@]}" --force
    add_workload
    ;;
  delete) add xpk cluster delete "--cluster=$name" "${where[@]}" --force ;;
esac
case $verb in
  logs) finish gcloud kubectl ;;
  setup) finish git docker ;;
  *) finish xpk ;;
esac
