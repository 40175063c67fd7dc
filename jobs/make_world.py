#!/usr/bin/env python
"""Make a procedural world: raw upstream files of every source, evaluation files, media, and the truth about them.

python jobs/make_world.py --scenes 20000 --out runs/world --workers 2
"""

import sys

from pipelines.corpora.world.command import make_world

if __name__ == "__main__":
    text, code = make_world(__doc__)
    if text:
        print(text)
    sys.exit(code)
