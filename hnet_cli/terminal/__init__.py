"""The process and its terminal: messages, tables, progress, failures, signals, standard streams."""
