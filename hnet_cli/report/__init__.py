"""Run folders as people read them: pages, lists, comparisons."""
