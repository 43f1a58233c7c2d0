gcloud compute tpus tpu-vm ssh my-run --project=my-project --zone=us-west4-a --worker=all --command='bash frozen_jax/launch/worker.sh logs'
