mkdir -p dist
git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp dist/frozen_jax.tar.gz my-run:frozen_jax.tar.gz --project=my-project --zone=us-west4-a --worker=all
gcloud compute tpus tpu-vm ssh my-run --project=my-project --zone=us-west4-a --worker=all --command='mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && bash frozen_jax/launch/worker.sh setup gs://my-bucket'
