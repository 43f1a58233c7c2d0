gcloud container clusters get-credentials my-run --project=my-project --location=us-west4
kubectl logs --selector=xpk.google.com/workload=my-run --all-containers --prefix --follow --tail=50 --max-log-requests=1024
