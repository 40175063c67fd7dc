"""One page of right and wrong examples of an evaluation, for people to look at."""

from x2vlm.tasks.pages.page import examples_page

__all__ = ["examples_page"]
