"""Datasets: preparation, reading, batches, tokens, baselines."""
