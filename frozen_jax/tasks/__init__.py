"""Tasks: prompts and scoring for one job each, over a trained model."""
