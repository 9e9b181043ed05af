"""Charts as inline SVG: colours come from the page's style, so they follow light and dark, and letters stay letters.

Drawn by hand, for three kinds of chart: a page with pictures of matplotlib would be ten times as large, and would stay
white at night.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 460, 250  # in the units of the drawing; a page draws them as pixels at most
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 12, 38
_MOST_POINTS = 300  # of a line; more are averaged
_FEW_DOTS = 40  # measured points are marked where there are not more


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        xs: ascending.
        ys: as many.
        colour: 1 to 4, of the page's style.
        is_faint: draw it thin, behind the others.
        has_dots: mark the points, where they are few.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 1
    is_faint: bool = False
    has_dots: bool = False


class ReliabilityPoint(Protocol):
    """Pictures whose confidence lies in one interval: `evaluation.calibration.ReliabilityBin`."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        ...

    @property
    def high(self) -> float:
        """Upper end."""
        ...

    @property
    def confidence(self) -> float:
        """Mean confidence of the pictures."""
        ...

    @property
    def accuracy(self) -> float:
        """The share of them that is right."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers that divide an interval.

    Args:
        low: lower end.
        high: upper end, above `low`.
        most: how many numbers at most; at least 2.
    """
    raw = (high - low) / max(1, most - 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(step for step in (1, 2, 5, 10, 20) if step * magnitude >= raw * 0.999) * magnitude
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_title: str,
    tell: Callable[[float], str],
    y_limits: tuple[float, float] | None = None,
    x_limits: tuple[float, float] | None = None,
) -> Markup:
    """Return lines over a common axis.

    Args:
        series: at least one with a point.
        label: the chart in a sentence, for who cannot see it.
        x_title: what runs along.
        tell: a value of the other axis as text.
        y_limits: of that axis; None takes what the lines need.
        x_limits: of the axis that runs along, likewise.
    """
    drawn = [_thinned(line) for line in series if len(line.xs)]
    x = x_limits or _span([value for line in drawn for value in line.xs])
    y = y_limits or _span([value for line in drawn for value in line.ys])
    frame = _Frame(x, y)
    parts = [_axes(frame, x_title, tell)]
    for line in sorted(drawn, key=lambda line: not line.is_faint):
        points = [frame.at(*pair) for pair in zip(line.xs, line.ys, strict=True)]
        parts.append(
            Markup('<path class="line c{}{}" d="{}"/>').format(
                line.colour, " faint" if line.is_faint else "", _path(points)
            )
        )
        if (line.has_dots and len(points) <= _FEW_DOTS) or len(points) == 1:
            dots = Markup("").join(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(*point) for point in points
            )
            parts.append(Markup('<g class="dots c{}">{}</g>').format(line.colour, dots))
    return _svg(parts, label)


def reliability_chart(points: Sequence[ReliabilityPoint], scaled: Sequence[ReliabilityPoint], *, label: str) -> Markup:
    """Return how often the model is right when it is so and so sure; a calibrated one follows the diagonal.

    Args:
        points: intervals of confidence, as bars; pale ones are of few pictures.
        scaled: the same after a temperature, as a line; may be empty.
        label: the chart in a sentence, for who cannot see it.
    """
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    most = max((point.count for point in points), default=1) or 1
    parts = [
        _axes(frame, "confidence", lambda value: f"{100 * value:.0f} %", x_tell=lambda value: f"{100 * value:.0f} %")
    ]
    for point in points:
        if point.count:
            (left, top), (right, foot) = frame.at(point.low, point.accuracy), frame.at(point.high, 0)
            box = (left + 1, top, right - left - 2, foot - top)
            parts.append(
                Markup(
                    '<rect class="bar" opacity="{:.2f}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{:,} pictures, {:.0%} to {:.0%} sure: {:.1%} right</title></rect>"
                ).format(
                    0.35 + 0.65 * math.sqrt(point.count / most),
                    *box,
                    point.count,
                    point.low,
                    point.high,
                    point.accuracy,
                )
            )
    (x1, y1), (x2, y2) = frame.at(0, 0), frame.at(1, 1)
    parts.append(Markup('<path class="diagonal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x1, y1, x2, y2))
    places = [frame.at(point.confidence, point.accuracy) for point in scaled if point.count]
    if places:
        dots = Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(*place) for place in places)
        parts.append(Markup('<path class="line c2" d="{}"/><g class="dots c2">{}</g>').format(_path(places), dots))
    return _svg(parts, label)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, label, Markup("").join(parts)
    )


def _axes(
    frame: _Frame,
    x_title: str,
    tell: Callable[[float], str],
    x_tell: Callable[[float], str] = lambda value: f"{value:,g}",
) -> Markup:
    """Return the grid, its numbers and the title of the axis that runs along."""
    parts = []
    for value in ticks(*frame.y, 5):
        x, y = frame.at(frame.x[0], value)
        parts.append(
            Markup('<path class="grid" d="M{:.1f} {:.1f}H{}"/><text class="y" x="{:.1f}" y="{:.1f}">{}</text>').format(
                x, y, _WIDTH - _RIGHT, x - 6, y + 4, tell(value)
            )
        )
    for value in ticks(*frame.x, 6):
        x, y = frame.at(value, frame.y[0])
        parts.append(Markup('<text class="x" x="{:.1f}" y="{:.1f}">{}</text>').format(x, y + 16, x_tell(value)))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(Markup('<text class="x title" x="{:.1f}" y="{}">{}</text>').format(middle, _HEIGHT - 4, x_title))
    return Markup("").join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that holds finite values with a little room."""
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return low, high


def _thinned(line: Series) -> Series:
    """Return a line of at most `_MOST_POINTS` points, each the mean of its neighbours."""
    if len(line.xs) <= _MOST_POINTS:
        return line
    groups = np.array_split(np.arange(len(line.xs)), _MOST_POINTS)
    xs, ys = [[float(np.asarray(values)[group].mean()) for group in groups] for values in (line.xs, line.ys)]
    return Series(line.name, xs, ys, line.colour, line.is_faint, line.has_dots)
