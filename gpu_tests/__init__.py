"""Smoke tests that run on the cluster, and the small training and inference pipelines that they exercise."""
