mkdir -p dist
git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute scp dist/frozen_jax.tar.gz @INSTANCE@:frozen_jax.tar.gz --project=my-project --zone=us-west4-a --scp-flag=-oConnectionAttempts=120
gcloud compute instances list --project=my-project --zones=us-west4-a --filter=labels.frozen_jax=my-run --format='value(name)' | grep . | xargs -P 32 -I @INSTANCE@ gcloud compute ssh @INSTANCE@ --project=my-project --zone=us-west4-a --command='mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && bash frozen_jax/launch/worker.sh setup 10.0.0.2:/share'
