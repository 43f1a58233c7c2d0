gcloud compute instance-groups managed delete my-run --project=my-project --zone=us-west4-a --quiet
gcloud compute instance-templates delete my-run --project=my-project --quiet
gcloud compute resource-policies delete my-run --project=my-project --region=us-west4 --quiet
