"""`hnet eval`: how good a model is, with honest byte counts, model-free baselines and intervals.

`inference.scoring` gives nats and `resampling` intervals; on them stand `compression` (bits per byte and baselines),
`gold` (boundaries against units that people marked), `noise`, `tasks`, `variants`, and `harness` (the adapter for
lm-evaluation-harness). `report.evaluate` puts them together into one JSON-able object, which `tables` shows.
"""
