"""Stage 5, `pretrain`: packed shards to trained weights, on one process or on Ray Train workers.

A plan needs only `config` and `stage`, which import no torch; `worker` trains, `result` writes the outputs.
"""
