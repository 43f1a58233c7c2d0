"""The web page of a trained model: what it answers (`answers.py`), how it looks (`layout.py`), what it refuses."""
