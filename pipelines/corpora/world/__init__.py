"""A procedural world: scenes of coloured, textured shapes, written as the raw upstream files of every source.

    config ──► scenes ──► texts ──► sources + evaluation ──► chunks ──► files ──► truth, cards, world.json
              (pixels,    (captions, (records of upstream    (parts on    (streamed
               boxes)      phrases)   tables, planted noise)  any worker)   in order)

Scene number i is a function of (seed, i), so any worker can reproduce any scene. It is the corpus for tests at scale
and for benchmarks.

    annotations/<source>/...  upstream files under their upstream names
    evaluation/<task>/...     official files of downstream tasks, about scenes whose number ends in 9
    media/images, media/clips the files behind the URLs http://world.invalid/...
    truth.parquet             one row per row, concept, caption and odd media file: what was planted, and which rule of
                              which stage must drop it ("kept" if none; see records.Truth)
    truth_scenes.parquet      what every scene shows: things, exact boxes of what is visible, relations, tracks
    cards/<source>.yaml       cards; in an experiment below the project: `card: ../runs/world/cards/coco`
                              (pipelines/experiments/world.yaml names all of them)
    world.json                config, counts, and the sha256 of every file; written last

The contents of files are the same on every machine: geometry, colours and texts are computed from integers and sha256.
The bytes of JPEG, MP4, Parquet and gzip files are the same with the locked Pillow, PyAV, PyArrow and zlib; the
checksum `content_sha256` excludes media and compression. With media `none`, checksums of media in upstream files are
empty and CC12M's list of them has no line.

A row of the truth is a row as the source's reader forms it: a clip of a narrated video, an image of RefCOCO. Two kinds
of noise are not planted but arise: speech that begins in the last second of a video (`late_speech`), and phrases of
RefCOCO and Flickr30k Entities that repeat another one (`near_duplicate_region`).

Rules that are not the paper's defaults are expected too, so that they can be tested: `language` needs a detector,
`deduplicate` and `decontaminate` name the weakest method that can find a repeated image (sha256, phash, embedding),
`min_clip_score` of clips needs a model trained on shapes.
"""
