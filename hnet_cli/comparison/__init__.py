"""`hnet compare`: several models trained alike on the same bytes, and what can honestly be said of the difference.

`session.compare` does it all: `members` sizes the line-up, `plan` decides the rest, trainings are ordinary runs,
`measures` reads the held-out documents, `results` computes the figures (with `curves`), `verdict` puts them into
sentences, and `tables` and `page` show them.
"""
