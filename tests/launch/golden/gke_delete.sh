xpk cluster delete --cluster=my-run --project=my-project --zone=us-west4-a --force
