"""How data flows from upstream files to an evaluated model.

    cards ─► read ─► download ─► filter ─► score ─► decontaminate ─► partition ─► pack ─► pretrain ─► evaluate
             (s1)      (s1)       (s2)      (s3)     deduplicate       (s4)       (s4)     (s5)        (s6)
                         └─► domains (s1)            (s4)

`sort` stands between `read` and `download` where a source says `key_ranges`: it puts rows in the order of their keys.
`domains` says which sites send something else than the source published; `decontaminate` and `deduplicate` look at all
sources at once, for test images and for repeated ones.

A *stage* is a kind of work, a *node* is a stage bound to a config and inputs, a *part* is one resumable slice of a
node, an *artifact* is what a node wrote and its *manifest* is the record of that. `flow` is the engine, `graph` the
only place where nodes are wired, and the `s*` modules meet only through artifacts.
"""
