"""`hnet eval`: how good a model is, with honest byte counts, beside what is free, and how sure the figures are.

`scoring` gives nats, `resampling` says how sure a figure is; on them stand `compression` (bits per byte and what to
beat), `gold` (boundaries against units that people marked), `noise`, `tasks`, `variants`, and `harness` (the adapter
for lm-evaluation-harness). `report` puts them together; `command` is the command line.
"""
