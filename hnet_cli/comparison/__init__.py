"""`hnet compare`: several models trained alike on the same bytes, and what can honestly be said of the difference.

`members` sizes the line-up, `plan` decides the rest, `training` makes ordinary runs, `measures` reads the held-out
documents; `curves` and `statistics` are the mathematics of `results`, which `verdict` puts into sentences and `tables`
and `page` show. `session` calls them in order; `command` is the command line.
"""
