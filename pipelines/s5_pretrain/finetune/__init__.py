"""Fine-tuning on a downstream task: the training loop, checkpoints and workers of pre-training, with a task's rows.

A plan needs only `config` and `stage`, which import no torch. `prepare` lays down the initial weights, `training` is
the work of every process, `select` measures epochs, `result` writes the model's folder.
"""
