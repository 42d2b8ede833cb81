"""Callbacks that hold the byte budget of a prepared network in the trainers of Lightning and Hugging Face Transformers."""
