"""Two kinds of plots, as SVG text: bars, and points joined by lines. Axes can be logarithmic."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

COLOURS = ("#b3b3b3", "#5b8db8", "#d1603d", "#4f9d69", "#7a5195")
WIDTH, LEFT, RIGHT, TOP = 760, 190, 90, 60
FONT = 'font-family="sans-serif" font-size="12"'


def bars(title: str, groups: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, log: bool) -> str:
    """Horizontal bars in groups; each group has one value for each name."""
    highest = max(value for _, values in groups for value in values)
    lowest = min(value for _, values in groups for value in values) / 2 if log else 0.0
    bar, gap, y, body = 14, 12, TOP, []
    for label, values in groups:
        middle = y + bar * len(values) / 2 + 4
        body.append(text(LEFT - 8, middle, label, anchor="end"))
        for value, colour in zip(values, COLOURS, strict=False):
            width = place(value, lowest, highest, log=log) * (WIDTH - LEFT - RIGHT)
            body.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{bar - 2}" fill="{colour}"/>')
            body.append(text(LEFT + width + 5, y + bar - 4, number(value)))
            y += bar
        y += gap
    return picture(title, names, body, y + 10)


def lines(
    title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], axes: tuple[str, str], *, log: bool
) -> str:
    """Points (x, y) joined by lines; `log` is for both axes."""
    points = [point for _, row in series for point in row]
    (low_x, high_x), (low_y, high_y) = ((min(each), max(each)) for each in zip(*points, strict=True))
    low_y = low_y / 2 if log else 0.0
    height, body = 320, []

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = place(point[0], low_x, high_x, log=log) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + height - place(point[1], low_y, high_y, log=log) * height

    for (_, row), colour in zip(series, COLOURS[1:], strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, row))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in row:
            x, y = at(point)
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
            body.append(text(x + 6, y - 6, number(point[1])))
    for x in sorted({point[0] for point in points}):
        body.append(text(at((x, high_y))[0], TOP + height + 18, number(x), anchor="middle"))
    body.append(text((WIDTH + LEFT - RIGHT) / 2, TOP + height + 38, axes[0], anchor="middle"))
    body.append(text(LEFT - 20, TOP + 10, axes[1], anchor="end"))
    return picture(title, ["", *(name for name, _ in series)], body, TOP + height + 50)


def place(value: float, low: float, high: float, *, log: bool) -> float:
    """Where a value lies between two others, from 0 to 1."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 1.0


def number(value: float) -> str:
    """A value as a person would write it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    """A text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT}>{html.escape(content)}</text>'


def picture(title: str, names: Sequence[str], body: Sequence[str], height: float) -> str:
    """The whole document, with its title and a legend of the names that are not empty."""
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}">']
    head.append(f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>{text(12, 20, title)}')
    x = float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        if name:
            head.append(f'<rect x="{x}" y="32" width="11" height="11" fill="{colour}"/>{text(x + 16, 42, name)}')
            x += 34 + 7 * len(name)
    return "\n".join([*head, *body, "</svg>\n"])
