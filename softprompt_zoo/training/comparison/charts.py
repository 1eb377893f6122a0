"""SVG charts for a page that is read on phones and desktops, in light and dark mode; the page sets the colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
"""Width of a chart in its own units, about a phone's width in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
"""Margins for the axes."""
LABEL = 14
"""Height of a label."""


@dataclass(frozen=True)
class Mark:
    """A line of the table in a chart."""

    number: int
    """Its number in the chart and in the table."""
    name: str
    kind: str
    """CSS class that sets its color: `method`, `baseline` or `best`."""
    value: float
    half_width: float | None
    x: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Maps numbers to coordinates."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a number."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def intervals(marks: Sequence[Mark], title: str) -> str:
    """Draw each line's mean as a point and its interval as a bar.

    Args:
        marks: The lines, from top to bottom.
        title: Description of the chart for screen readers.
    """
    row, left = 26, 150
    height = TOP + row * len(marks) + BOTTOM
    ends = [mark.value + side * (mark.half_width or 0.0) for mark in marks for side in (-1, 1)]
    low, high = _span([mark.value for mark in marks], ends)
    scale = Scale(low, high, left, WIDTH - RIGHT)
    parts = _x_axis(scale, TOP, height - BOTTOM)
    for place, mark in enumerate(marks):
        y = TOP + row * place + row / 2
        parts.append(f'<text class="name {mark.kind}" x="{left - 8}" y="{y + 4}">{escape(_short(mark.name))}</text>')
        if mark.half_width:
            x1, x2 = scale(max(low, mark.value - mark.half_width)), scale(min(high, mark.value + mark.half_width))
            parts.append(f'<line class="bar {mark.kind}" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{mark.kind}" cx="{scale(mark.value)}" cy="{y}" r="4.5"/>')
    return _svg(height, title, parts)


def scatter(marks: Sequence[Mark], levels: Sequence[Mark], title: str, x_title: str) -> str:
    """Draw quality against a size on a logarithmic axis; lines without a size are levels across the chart.

    Args:
        marks: Lines with a size, `x`, above 0.
        levels: Lines without a size.
        title: Description of the chart for screen readers.
        x_title: Label of the x axis.
    """
    height = 270
    low, high = _span([mark.value for mark in (*marks, *levels)], [])
    exponents = [math.log10(mark.x) for mark in marks] or [0.0]
    across = Scale(math.floor(min(exponents)), math.ceil(max(exponents) + 1e-9), LEFT, WIDTH - RIGHT - 8)
    up = Scale(low, high, height - BOTTOM - 8, TOP + 6)
    parts = _y_axis(up, LEFT, WIDTH - RIGHT)
    for exponent in range(int(across.low), int(across.high) + 1):
        x = across(exponent)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{height - BOTTOM + 14}">{_power(exponent)}</text>')
    parts.append(f'<text class="tick middle" x="{(LEFT + WIDTH) / 2}" y="{height - 4}">{escape(x_title)}</text>')
    for mark, label in zip(levels, _apart([up(mark.value) - 4 for mark in levels]), strict=True):
        y = up(mark.value)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{WIDTH - RIGHT}" y="{label}">{escape(mark.name)}</text>')
    places: list[tuple[float, float]] = []
    for mark in marks:
        x, y = _free(across(math.log10(mark.x)), up(mark.value), places)
        places.append((x, y))
        parts.append(f'<circle class="{mark.kind}" cx="{x}" cy="{y}" r="9"><title>{escape(mark.name)}</title></circle>')
        parts.append(f'<text class="number" x="{x}" y="{y + 3.5}">{mark.number}</text>')
    return _svg(height, title, parts)


def _apart(heights: Sequence[float]) -> list[float]:
    """Move overlapping labels down."""
    found, last = list(heights), -math.inf
    for place in sorted(range(len(heights)), key=heights.__getitem__):
        found[place] = last = round(max(heights[place], last + LABEL), 1)
    return found


def curves(
    training: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]], high: float, title: str
) -> str:
    """Draw a small chart of the training of one line: the losses of batches and of validation rows.

    Args:
        training: Step and loss of each batch.
        validation: Step and loss of each validation.
        high: The largest loss shown, the same for all charts that stand side by side.
        title: Description of the chart for screen readers.
    """
    width, height, left, bottom = 170, 110, 30, 18
    last = max(step for step, _ in (*training, *validation))
    across, up = Scale(0, last, left, width - 6), Scale(0, high, height - bottom, 8)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{across(step)},{up(min(loss, high))}" for step, loss in points)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - 6}" y1="{up(value)}" y2="{up(value)}"/>'
        f'<text class="tick end" x="{left - 4}" y="{up(value) + 3}">{value:.2g}</text>'
        for value in (0, high / 2, high)
    ]
    parts.append(f'<text class="tick end" x="{width - 6}" y="{height - 4}">step {last:.0f}</text>')
    parts.append(f'<polyline class="training" points="{path(training)}"/>')
    parts.append(f'<polyline class="validation" points="{path(validation)}"/>')
    parts += [f'<circle class="validation" cx="{across(s)}" cy="{up(min(v, high))}" r="2.5"/>' for s, v in validation]
    return _svg(height, title, parts, width)


def differences(values: Sequence[float], title: str) -> str:
    """Draw the difference of every row, from the most to the least favorable.

    Args:
        values: Positive where the best method is better.
        title: Description of the chart for screen readers.
    """
    height = 170
    ordered = sorted(values, reverse=True)
    most = max(map(abs, ordered)) or 1.0
    up = Scale(-most, most, height - 12, 12)
    across = Scale(0, len(ordered), LEFT, WIDTH - RIGHT)
    width = max(0.8, (WIDTH - RIGHT - LEFT) / len(ordered) - 0.6)
    parts = []
    for place, value in enumerate(ordered):
        top, size = min(up(0), up(value)), abs(up(value) - up(0))
        kind = "better" if value > 0 else "worse"
        parts.append(f'<rect class="{kind}" x="{across(place)}" y="{top}" width="{width:.2f}" height="{size:.1f}"/>')
    for value in (-most, 0.0, most):
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{up(value) + 3}">{value:+.2g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(0)}" y2="{up(0)}"/>')
    return _svg(height, title, parts)


def _svg(height: float, title: str, parts: Sequence[str], width: float = WIDTH) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *parts, "</svg>"])


def _span(values: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """Return the range of an axis: all values, and ends of intervals up to twice the span of the values."""
    low, high = min(values), max(values)
    room = (high - low) or abs(high) or 1.0
    ends = [min(max(end, low - room / 2), high + room / 2) for end in ends] or [low - room * 0.08, high + room * 0.08]
    return min(low - room * 0.05, *ends), max(high + room * 0.05, *ends)


def _ticks(scale: Scale) -> list[float]:
    """Return round numbers on an axis, about four."""
    rough = (scale.high - scale.low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.8)
    first = math.ceil(scale.low / step)
    return [round(number * step, 10) for number in range(first, math.floor(scale.high / step) + 1)]


def _x_axis(scale: Scale, top: float, bottom: float) -> list[str]:
    return [
        f'<line class="grid" x1="{scale(tick)}" x2="{scale(tick)}" y1="{top}" y2="{bottom}"/>'
        f'<text class="tick middle" x="{scale(tick)}" y="{bottom + 16}">{tick:.4g}</text>'
        for tick in _ticks(scale)
    ]


def _y_axis(scale: Scale, left: float, right: float) -> list[str]:
    return [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{scale(tick)}" y2="{scale(tick)}"/>'
        f'<text class="tick end" x="{left - 6}" y="{scale(tick) + 3.5}">{tick:.4g}</text>'
        for tick in _ticks(scale)
    ]


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Move a mark to the right until it covers no other."""
    while any(math.hypot(x - other_x, y - other_y) < 16 for other_x, other_y in taken):
        x += 4
    return round(x, 1), y


def _power(exponent: int) -> str:
    """Show a power of ten in the usual short form."""
    names = {0: "1", 1: "10", 2: "100", 3: "1k", 4: "10k", 5: "100k", 6: "1M", 7: "10M", 8: "100M", 9: "1B", 10: "10B"}
    return names.get(exponent, f"1e{exponent}")


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
