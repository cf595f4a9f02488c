"""Smoke tests that run on the cluster, and the training and inference pipelines they use."""
