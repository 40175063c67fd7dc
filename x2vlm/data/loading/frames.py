"""Choosing the frames of a clip."""

from x2vlm.data.randomness import Draws


def choose_frames(num_frames: int, num_wanted: int, draws: Draws | None = None) -> list[int]:
    """`num_wanted` ascending frame numbers of a clip: one from each of as many segments of nearly equal length.

    With `draws` (training) a random frame of each segment, the longer segments in random places; without, the first
    frame of each, the longer segments first. Clips with too few frames repeat some.
    """
    if num_frames <= num_wanted:
        missing = num_wanted - num_frames
        repeats = [draws.integer(0, num_frames - 1) if draws else number % num_frames for number in range(missing)]
        return sorted([*range(num_frames), *repeats])
    length, num_longer = divmod(num_frames, num_wanted)
    lengths = [length + (number < num_longer) for number in range(num_wanted)]
    if draws:
        lengths = draws.shuffled(lengths)
    chosen, start = [], 0
    for length in lengths:
        chosen.append(start + draws.integer(0, length - 1) if draws else start)
        start += length
    return chosen
