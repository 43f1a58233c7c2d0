xpk cluster create --cluster=my-run --project=my-project --zone=us-west4-a --tpu-type=v6e-16 --num-slices=1 --on-demand --enable-gcsfuse-csi-driver
xpk storage attach runs --cluster=my-run --project=my-project --zone=us-west4-a --type=gcsfuse --bucket=my-bucket --size=1 --mount-point=/mnt/runs --readonly=false --auto-mount=true
