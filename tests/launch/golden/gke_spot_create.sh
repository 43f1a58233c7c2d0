xpk cluster create --cluster=my-run --project=my-project --zone=us-west4-a --tpu-type=tpu7x-2x2x2 --num-slices=2 --spot
