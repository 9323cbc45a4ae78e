"""Models and training states on disk, and conversion from and to other formats."""
