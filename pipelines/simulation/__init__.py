"""What a run of many parts costs its driver and its store, without any data.

    experiment ─► graph ─► planner, executor, manifests, journal, store client (all real) ─► table, growth, money
                              ▲                                  │
                              └── made-up parts ◄── outputs ◄── rates      object_store: counts requests, keeps little

Everything that a driver does is done by the engine itself; a part that would have run on a worker is replaced by one
that asks the store what a worker would ask and writes records of files of measured sizes. Files without content take no
disk. Only listings of segments, which plans read, have content.
"""
