"""Choosing the frames of a clip, and neighbouring clips of a video that are joined."""

from collections.abc import Sequence

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


def choose_clips(clip_lengths: Sequence[int], is_silent: Sequence[bool], min_frames: int, draws: Draws) -> list[int]:
    """Ascending numbers of neighbouring clips that together have `min_frames` frames, or of all there are.

    Starts at a random clip and grows to either side with equal probability. Clips without speech count no frames and
    are left out of the result, so it is empty if all are silent.
    """
    first = last = draws.integer(0, len(clip_lengths) - 1)
    end = len(clip_lengths) - 1

    def spoken() -> list[int]:
        return [number for number in range(first, last + 1) if not is_silent[number]]

    while sum(clip_lengths[number] for number in spoken()) < min_frames and (first > 0 or last < end):
        if last == end or (first > 0 and draws.chance(0.5)):
            first -= 1
        else:
            last += 1
    return spoken()
