"""The hostile web server and its payloads by one name; they live in `tests/hostile/`."""

from tests.hostile.behaviours import download_children, hostile_server
from tests.hostile.payloads import clip, gif_bomb, jpeg, png_header_bomb
from tests.hostile.server import HostileServer

__all__ = ["HostileServer", "clip", "download_children", "gif_bomb", "hostile_server", "jpeg", "png_header_bomb"]
