state=$(gcloud compute tpus tpu-vm list --project=my-project --zone=us-west4-a --filter='name~(^|/)my-run$' --format='value(state)')
if [ "$state" != READY ]; then
  gcloud compute tpus tpu-vm delete my-run --project=my-project --zone=us-west4-a --quiet || true
  gcloud compute tpus tpu-vm create my-run --project=my-project --zone=us-west4-a --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
  mkdir -p dist
  git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
  gcloud compute tpus tpu-vm scp dist/frozen_jax.tar.gz my-run:frozen_jax.tar.gz --project=my-project --zone=us-west4-a --worker=all
  gcloud compute tpus tpu-vm ssh my-run --project=my-project --zone=us-west4-a --worker=all --command='mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && bash frozen_jax/launch/worker.sh setup gs://my-bucket'
fi
gcloud compute tpus tpu-vm ssh my-run --project=my-project --zone=us-west4-a --worker=all --command='bash frozen_jax/launch/worker.sh run python -m frozen_jax.main --config=configs/quickstart.py --workdir=/mnt/runs/quickstart '\''--config.data.caption_format= it'\''\'\'''\''s {caption}'\'''
