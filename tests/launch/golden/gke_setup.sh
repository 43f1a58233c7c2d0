git archive HEAD | docker build --tag=us-docker.pkg.dev/my-project/repo/frozen_jax:1 --file=launch/Dockerfile -
docker push us-docker.pkg.dev/my-project/repo/frozen_jax:1
