gcloud compute tpus queued-resources delete my-run --project=my-project --zone=us-west4-a --force --quiet
