"""Two kinds of plots, as SVG text: bars, and points joined by lines."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#b3b3b3", "#5b8db8", "#d1603d", "#4f9d69", "#7a5195", "#c9a227")
WIDTH, LEFT, RIGHT, TOP = 760, 190, 90, 60
FONT = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Line:
    """A line of a plot, and values to compare it with: the first is drawn dashed, the second dotted."""

    name: str
    points: Sequence[tuple[float, float]]
    levels: tuple[float, ...] = ()


def bars(title: str, groups: Sequence[tuple[str, Sequence[float]]], names: Sequence[str]) -> str:
    """Horizontal bars in groups, on a logarithmic axis; each group has one value for each name."""
    highest = max(value for _, values in groups for value in values)
    lowest = min(value for _, values in groups for value in values) / 2
    bar, gap, y, body = 14, 12, TOP, []
    for label, values in groups:
        middle = y + bar * len(values) / 2 + 4
        body.append(text(LEFT - 8, middle, label, anchor="end"))
        for value, colour in zip(values, COLOURS, strict=False):
            width = place(value, lowest, highest) * (WIDTH - LEFT - RIGHT)
            body.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{bar - 2}" fill="{colour}"/>')
            body.append(text(LEFT + width + 5, y + bar - 4, number(value)))
            y += bar
        y += gap
    return picture(title, names, body, y + 10)


def lines(title: str, series: Sequence[Line], axes: tuple[str, str]) -> str:
    """Points (x, y) joined by lines, on logarithmic axes; the last point of each line carries its value."""
    points = [point for line in series for point in line.points]
    (low_x, high_x), (low_y, high_y) = ((min(each), max(each)) for each in zip(*points, strict=True))
    levels = [value for line in series for value in line.levels]
    low_y, high_y = min([low_y, *levels]) / 2, max([high_y, *levels])
    height, body = 360, []

    def at(x: float, y: float) -> tuple[float, float]:
        across = place(x, low_x, high_x) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + height - place(y, low_y, high_y) * height

    for line, colour in zip(series, COLOURS[1:], strict=False):
        places = [at(*point) for point in line.points]
        body.append(stroke(places, colour))
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        body.append(text(places[-1][0] + 8, places[-1][1] + 4, number(line.points[-1][1])))
        for value, dashes in zip(line.levels, ("8 4", "2 4"), strict=False):
            body.append(stroke([at(low_x, value), at(high_x, value)], colour, dashes))
    for x in sorted({point[0] for point in points}):
        body.append(text(at(x, high_y)[0], TOP + height + 18, number(x), anchor="middle"))
    body.append(text((WIDTH + LEFT - RIGHT) / 2, TOP + height + 38, axes[0], anchor="middle"))
    for y in decades(low_y, high_y):
        body.append(text(LEFT - 12, at(low_x, y)[1] + 4, number(y), anchor="end"))
    body.append(text(LEFT - 60, TOP + 10, axes[1], anchor="end"))
    return picture(title, ["", *(line.name for line in series)], body, TOP + height + 50)


def stroke(places: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> str:
    """A line through places of the picture."""
    path, dashed = " ".join(f"{x:.1f},{y:.1f}" for x, y in places), f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def decades(low: float, high: float) -> list[float]:
    """The powers of ten between two values."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def place(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic axis, from 0 to 1."""
    return math.log(value / low) / math.log(high / low) if high > low else 1.0


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
