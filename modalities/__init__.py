"""The built-in modalities, registered like anybody's plugin."""
