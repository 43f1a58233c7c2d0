"""Pictures and text into batches: sources → images, text → pipeline. The only package that may import TensorFlow."""
