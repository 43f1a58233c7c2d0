gcloud compute tpus tpu-vm delete my-run --project=my-project --zone=us-west4-a --quiet
