#!/usr/bin/env python
"""Show what a model makes of images and clips: one page with captions, and boxes for phrases typed by hand.

python jobs/show.py runs/model photo.jpg clips/ --phrases "a red bus" "a dog" --out runs/page.html
"""

import sys

from x2vlm.inference.show import show

if __name__ == "__main__":
    text, code = show(__doc__)
    if text:
        print(text)
    sys.exit(code)
