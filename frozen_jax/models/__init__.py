"""Networks in Flax Linen: language models, vision encoders, prefix, and the model that joins them."""
