running=$(gcloud compute instances list --project=my-project --zones=us-west4-a --filter='labels.frozen_jax=my-run AND status=RUNNING' --format='value(name)' | wc -l)
if [ "$running" -lt 2 ]; then
  gcloud compute instance-groups managed delete my-run --project=my-project --zone=us-west4-a --quiet || true
  gcloud compute instance-templates delete my-run --project=my-project --quiet || true
  gcloud compute resource-policies delete my-run --project=my-project --region=us-west4 --quiet || true
  gcloud compute resource-policies create workload-policy my-run --project=my-project --region=us-west4 --type=high-throughput --accelerator-topology=2x2x2
  gcloud compute instance-templates create my-run --project=my-project --machine-type=tpu7x-standard-4t --image-family=ubuntu-accel-2404-amd64-tpu-tpu7x --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform --labels=frozen_jax=my-run --provisioning-model=SPOT --instance-termination-action=STOP
  gcloud compute instance-groups managed create my-run --project=my-project --zone=us-west4-a --template=my-run --size=2 --workload-policy=projects/my-project/regions/us-west4/resourcePolicies/my-run --default-action-on-vm-failure=do-nothing
  gcloud compute instance-groups managed wait-until my-run --project=my-project --zone=us-west4-a --stable
  mkdir -p dist
  git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
  gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute scp dist/frozen_jax.tar.gz @INSTANCE@:frozen_jax.tar.gz --project=my-project --zone=us-west4-a --scp-flag=-oConnectionAttempts=120
  gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute ssh @INSTANCE@ --project=my-project --zone=us-west4-a --command='mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && bash frozen_jax/launch/worker.sh setup gs://my-bucket'
fi
gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute ssh @INSTANCE@ --project=my-project --zone=us-west4-a --command='bash frozen_jax/launch/worker.sh run python -m frozen_jax.main --config=configs/quickstart.py --workdir=/mnt/runs/quickstart '\''--config.data.caption_format= it'\''\'\'''\''s {caption}'\'''
