gcloud compute tpus queued-resources create my-run --node-id=my-run --project=my-project --zone=us-west4-a --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
state=
while [ "$state" != ACTIVE ]; do
  sleep 30
  state=$(gcloud compute tpus queued-resources describe my-run --project=my-project --zone=us-west4-a --format='value(state.state)')
  case $state in FAILED | SUSPEND*) echo "the request is $state" >&2 && exit 1 ;; esac
done
