gcloud compute tpus tpu-vm create my-run --project=my-project --zone=us-west4-a --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
