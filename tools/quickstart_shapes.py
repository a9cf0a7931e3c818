"""The objects of the quickstart data set as polygons.

A shape is a list of `(points, tone)` in painting order: points float `[n, 2]` (x, y) within about -1..1, y down; tone
is the brightness relative to the object's colour, 0 for a hole through which the background shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Part = tuple[np.ndarray, float]


def ellipse(x: float, y: float, a: float, b: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    """Points on an arc of an ellipse with half axes `a`, `b`; angles in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, max(8, round(abs(stop - start) / 8))))
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The four corners."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _lens(width: float) -> np.ndarray:
    """A leaf blade that stands upright, pointed at both ends."""
    along = np.linspace(0, 1, 24)
    half = width * np.sin(np.pi * along**0.8) ** 0.9
    y = 2 * along - 1
    return np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])


def _mug() -> list[Part]:
    handle = ellipse(0.5, 0.08, 0.46, 0.42)
    body = np.concatenate([rectangle(-0.85, -0.7, 0.5, 0.55)[:2], ellipse(-0.175, 0.6, 0.675, 0.3, 0, 180)])
    return [
        (handle, 0.85),
        (ellipse(0.5, 0.08, 0.27, 0.24), 0.0),
        (body, 1.0),
        (ellipse(-0.175, -0.7, 0.675, 0.2), 1.25),
        (ellipse(-0.175, -0.69, 0.56, 0.13), 0.45),
    ]


def _star() -> list[Part]:
    angle = np.radians(np.arange(10) * 36 - 90)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    facets = [(np.array([[0, 0], points[i], points[(i + 1) % 10]]), 0.78) for i in range(0, 10, 2)]
    return [(points, 1.1), *facets]


def _leaf() -> list[Part]:
    stem = np.array([[-0.05, 0.4], [0.05, 0.4], [0.09, 1.25], [-0.02, 1.25]])
    veins: list[Part] = [(np.array([[-0.03, -0.9], [0.03, -0.9], [0.05, 0.95], [-0.05, 0.95]]), 0.55)]
    for y in (-0.45, -0.05, 0.35):
        for side in (-1, 1):
            veins.append((np.array([[0, y + 0.28], [side * 0.34, y], [side * 0.34, y + 0.06], [0, y + 0.36]]), 0.6))
    return [(stem, 0.6), (_lens(0.58), 1.0), *veins]


def _ring() -> list[Part]:
    glint = np.concatenate([ellipse(0, 0, 0.92, 0.92, 190, 260), ellipse(0, 0, 0.78, 0.78, 260, 190)])
    return [(ellipse(0, 0, 1, 1), 1.0), (glint, 1.4), (ellipse(0, 0, 0.58, 0.58), 0.0)]


def _house() -> list[Part]:
    return [
        (rectangle(0.3, -0.85, 0.55, -0.2), 0.6),
        (rectangle(-0.72, -0.15, 0.72, 0.9), 1.1),
        (np.array([[-1.0, -0.1], [0, -0.95], [1.0, -0.1]]), 0.65),
        (rectangle(-0.18, 0.3, 0.22, 0.9), 0.4),
        (rectangle(-0.58, 0.1, -0.28, 0.42), 1.5),
        (rectangle(0.34, 0.1, 0.6, 0.42), 1.5),
    ]


def _fish() -> list[Part]:
    return [
        (np.array([[0.45, 0], [1.0, -0.5], [0.88, 0], [1.0, 0.5]]), 0.75),
        (np.array([[-0.2, -0.3], [0.15, -0.68], [0.35, -0.2]]), 0.7),
        (ellipse(-0.2, 0, 0.8, 0.44), 1.05),
        (np.concatenate([ellipse(-0.4, 0, 0.2, 0.38, -80, 80), ellipse(-0.5, 0, 0.2, 0.38, 80, -80)]), 0.65),
        (ellipse(-0.7, -0.1, 0.1, 0.1), 1.6),
        (ellipse(-0.71, -0.1, 0.05, 0.05), 0.15),
    ]


def _moon() -> list[Part]:
    crescent = np.concatenate([ellipse(0, 0, 1, 1, 55, 305), ellipse(0.42, 0, 0.83, 0.83, 281, 79)])
    return [(crescent, 1.1), (ellipse(-0.72, -0.2, 0.1, 0.1), 0.75), (ellipse(-0.6, 0.35, 0.14, 0.14), 0.75)]


def _cross() -> list[Part]:
    bar, arm = rectangle(-0.32, -1, 0.32, 1), rectangle(-1, -0.32, 1, 0.32)
    return [
        (bar, 1.0),
        (arm, 1.0),
        (rectangle(-0.14, -0.8, 0.14, 0.8), 1.35),
        (rectangle(-0.8, -0.14, 0.8, 0.14), 1.35),
    ]


SHAPES: dict[str, Callable[[], list[Part]]] = {
    "mug": _mug,
    "star": _star,
    "leaf": _leaf,
    "ring": _ring,
    "house": _house,
    "fish": _fish,
    "moon": _moon,
    "cross": _cross,
}
"""Class name -> its parts."""
