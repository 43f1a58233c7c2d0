running=$(gcloud compute instances list --project=my-project --zones=us-west4-a --filter='labels.frozen_jax=my-run AND status=RUNNING' --format='value(name)' | wc -l)
if [ "$running" -lt 1 ]; then
  gcloud compute instances delete my-run --project=my-project --zone=us-west4-a --quiet || true
  gcloud compute instances create my-run --project=my-project --zone=us-west4-a --machine-type=ct6e-standard-8t --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform --labels=frozen_jax=my-run
  mkdir -p dist
  git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
  gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute scp dist/frozen_jax.tar.gz @INSTANCE@:frozen_jax.tar.gz --project=my-project --zone=us-west4-a --scp-flag=-oConnectionAttempts=120
  gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute ssh @INSTANCE@ --project=my-project --zone=us-west4-a --command='mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && bash frozen_jax/launch/worker.sh setup 10.0.0.2:/share'
fi
gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute ssh @INSTANCE@ --project=my-project --zone=us-west4-a --command='bash frozen_jax/launch/worker.sh run python -m frozen_jax.main --config=configs/quickstart.py --workdir=/mnt/runs/quickstart '\''--config.data.caption_format= it'\''\'\'''\''s {caption}'\'''
