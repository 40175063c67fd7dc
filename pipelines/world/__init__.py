"""A procedural world: scenes of coloured, textured shapes, written as the raw upstream files of every source.

    config ──► scenes ──► texts ──► sources + evaluation ──► chunks ──► assemble ──► files, cards, truth.parquet
              (pixels,    (captions, (records of upstream    (parts on    (streams
               boxes)      phrases)   tables, planted noise)  any worker)   in order)

Everything about scene number i is a function of (seed, i), so any worker can make any scene, and again. It is the
corpus for tests at scale and for benchmarks; what was planted in it is written down row by row in `truth.parquet`.
"""
