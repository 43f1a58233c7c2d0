"""Trained models as directories that PyTorch and transformers read, and back."""
