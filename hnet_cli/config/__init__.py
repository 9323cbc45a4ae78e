"""Configurations: presets, the `train:` section, YAML. No torch in here."""
