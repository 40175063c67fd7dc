"""Stage 5, `pretrain`: packed shards to trained weights, on one process or on Ray Train workers.

`config` and `stage` are what a plan needs and import no torch; `worker` trains, `result` writes down what came of it.
"""
