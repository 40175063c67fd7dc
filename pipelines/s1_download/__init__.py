"""Stage 1: from upstream annotation files to rows with media.

`read` turns a source's raw files into rows of one schema, without touching the network. `download` fetches what the
rows point at. Both hand on every row they take out as data, with a reason. `domains` looks at all parts of a download
together and names the sites that send something else than the source published.
"""
