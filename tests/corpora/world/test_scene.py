"""Boxes, visibility and relations of scenes, against masks that are made another way."""

from fractions import Fraction

import numpy as np
import pytest

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.render import render_background, render_scene
from pipelines.corpora.world.drawing.scene import Scene, make_scene
from pipelines.corpora.world.drawing.shapes import SUBPIXELS, Ring, placed_outline, rasterise
from pipelines.corpora.world.drawing.words import COLOURS, MOTIONS, RELATIONS, SHAPES, SIZES, TEXTURES

CONFIG = WorldConfig(seed=11)
SCENES = [make_scene(CONFIG, index) for index in range(60)]


def inside(rings: tuple[Ring, ...], width: int, height: int) -> np.ndarray:
    """Even-odd rule by counting, for each pixel's centre, the edges that a ray to the left crosses."""
    mask = np.zeros((height, width), dtype=bool)
    columns = np.arange(width) + 0.5
    for row in range(height):
        y = Fraction(2 * row + 1, 2)
        crossings = []
        for ring in rings:
            points = [(Fraction(x, SUBPIXELS), Fraction(y, SUBPIXELS)) for x, y in ring]
            for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                if (y0 <= y) != (y1 <= y):
                    crossings.append(float(x0 + (y - y0) * (x1 - x0) / (y1 - y0)))
        mask[row] = (columns[:, None] > np.array(crossings)[None, :]).sum(axis=1) % 2 == 1
    return mask


def masks_of(scene: Scene) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Whole and visible masks of a scene's things."""
    whole = [inside(thing.outline, scene.width, scene.height) for thing in scene.things]
    visible = [mask & ~np.any([np.zeros_like(mask), *whole[number + 1 :]], axis=0) for number, mask in enumerate(whole)]
    return whole, visible


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)


@pytest.mark.parametrize("scene", SCENES[:16], ids=lambda scene: f"scene{scene.index}")
def test_boxes_and_visibility_are_those_of_the_masks(scene: Scene) -> None:
    whole, visible = masks_of(scene)
    for thing, all_of_it, seen in zip(scene.things, whole, visible, strict=True):
        assert thing.box == box_of(seen)
        assert thing.full_box == box_of(all_of_it)
        assert (thing.visible, thing.pixels) == (seen.sum(), all_of_it.sum())
        assert seen.sum() >= CONFIG.min_visible_share * all_of_it.sum()
        _, _, w, h = thing.box
        assert w * h * 224 * 224 >= 16 * 16 * scene.width * scene.height, "no clean box is smaller than a patch"


@pytest.mark.parametrize("scene", SCENES[:16], ids=lambda scene: f"scene{scene.index}")
def test_relations_are_those_of_the_masks_and_none_is_missing(scene: Scene) -> None:
    whole, visible = masks_of(scene)
    short = min(scene.width, scene.height)
    found = {(one.name, one.subject, one.target) for one in scene.relations}
    assert len(found) == len(scene.relations)
    for a in range(len(scene.things)):
        for b in range(len(scene.things)):
            if a != b:
                names = relations_between(whole[a], whole[b], visible[a], visible[b], a > b, short)
                assert names == {name for name, subject, target in found if (subject, target) == (a, b)}


def relations_between(
    a: np.ndarray, b: np.ndarray, seen_a: np.ndarray, seen_b: np.ndarray, a_is_on_top: bool, short: int
) -> set[str]:
    """The definitions in words, on masks."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_of(seen_a), box_of(seen_b)
    dx, dy = (bx + bw / 2) - (ax + aw / 2), (by + bh / 2) - (ay + ah / 2)
    names = set()
    if abs(dx) > abs(dy):
        names |= {"left_of"} if ax + aw <= bx else {"right_of"} if bx + bw <= ax else set()
    if abs(dy) > abs(dx):
        names |= {"above"} if ay + ah <= by else {"below"} if by + bh <= ay else set()
    if (a & b).any():
        above, below = (a, b) if a_is_on_top else (b, a)
        contained = not (above & ~below).any()
        names |= {("inside" if contained else "in_front_of") if a_is_on_top else ("around" if contained else "behind")}
    # Background pixels between the boxes, on the axis where there are more.
    gap_x = max(bx - (ax + aw), ax - (bx + bw))
    gap_y = max(by - (ay + ah), ay - (by + bh))
    gap = max(gap_x, gap_y)
    names |= {"near"} if 0 <= gap <= short / 16 else set()
    names |= {"far_from"} if gap >= 0.4 * short else set()
    return names


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_covers_what_the_even_odd_rule_says(shape: str) -> None:
    rings = placed_outline(shape, 40, 41, 29, 10)
    patch = rasterise(rings)
    canvas = np.zeros((90, 90), dtype=bool)
    patch.on(canvas)[...] = patch.mask
    assert (canvas == inside(rings, 90, 90)).all()
    assert canvas.sum() > 300


def test_a_circle_has_the_area_of_a_circle() -> None:
    assert rasterise(placed_outline("circle", 100, 100, 80, 0)).mask.sum() == pytest.approx(np.pi * 80**2, rel=0.005)


def test_only_things_change_the_background() -> None:
    for scene in SCENES[:12]:
        ground = render_background(CONFIG.seed, scene.index, scene.width, scene.height, scene.background)
        changed = (render_scene(CONFIG.seed, scene) != ground).any(axis=2)
        covered = np.any(masks_of(scene)[0], axis=0)
        assert not (changed & ~covered).any()
        assert changed.sum() > 0.98 * covered.sum()


def test_worlds_are_rich() -> None:
    assert len(SHAPES) >= 12
    assert len(COLOURS) >= 10
    assert len(TEXTURES) >= 4
    assert len(SIZES) >= 4
    assert len(RELATIONS) >= 8
    assert len(MOTIONS) >= 4
    things = [thing for scene in SCENES for thing in scene.things]
    assert {len(scene.things) for scene in SCENES} == set(range(1, 9))
    assert {relation.name for scene in SCENES for relation in scene.relations} == set(RELATIONS)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert any(thing.visible < thing.pixels for thing in things)
