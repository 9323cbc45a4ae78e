"""Shared parts of the HTML pages: shell, charts, styles, scripts."""
