"""Process groups, and models on several ranks."""
