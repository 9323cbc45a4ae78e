"""The `hnet` command: one file per command. Options in, one call into the library, results out."""
