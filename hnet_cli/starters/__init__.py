"""Small models that ship with the tool, one folder per modality; see the README in each."""
