"""Evaluation of frozen features on labeled images: linear probes, fine-tuning, k-NN and logistic regression; metrics and results."""
