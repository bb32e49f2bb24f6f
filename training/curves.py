"""Curves of runs, over steps and over time, as SVG that takes its colours from the page."""

import io
import logging
import math
import re
from collections.abc import Mapping, Sequence

from runs.history import Curve

# Visible on light and on dark backgrounds.
COLOURS = ("#3b82f6", "#f97316", "#10a37f", "#e11d48", "#a855f7", "#ca8a04", "#0891b2", "#78716c")
STYLES = ("-", "--", ":", "-.")
MOST = 300  # points of a curve; longer curves are averaged down
ROUGH = 40  # points; a noisy curve of this many or more gets a running mean
# Placeholders for the page's colours: of text, and of lines in the background.
TEXT, FAINT = "#010203", "#040506"
UP_TO_A_MINUTE, UP_TO_AN_HOUR = 180, 3 * 3600  # seconds: the longest time whose axis is in seconds, in minutes


def style_of(number: int) -> tuple[str, str]:
    """The colour and the line style of the series with this number."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def thinned(curve: Curve, most: int = MOST) -> Curve:
    """Average a curve down to at most `most` points, leaving out values that are not finite."""
    points = [(x, y) for x, y in curve if math.isfinite(y)]
    size = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def running_mean(curve: Curve) -> Curve:
    """Average at each point over the thirtieth of the curve around it."""
    reach = max(1, len(curve) // 60)
    ys = [y for _, y in curve]
    windows = [ys[max(0, i - reach) : i + reach + 1] for i in range(len(ys))]
    return [(x, sum(window) / len(window)) for (x, _), window in zip(curve, windows)]


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit for an axis of times up to `seconds`, and its length in seconds."""
    if seconds <= UP_TO_A_MINUTE:
        return "s", 1
    return ("min", 60) if seconds <= UP_TO_AN_HOUR else ("h", 3600)


def draw(series: Mapping[int, Curve], over_time: bool, noisy: bool = True) -> str:
    """Draw curves as an SVG element; the key of a curve chooses its style.

    over_time: x is seconds, not steps. noisy: draw a running mean over long curves, and use a logarithmic axis if
    values span more than a factor of 20.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib  # here, because it takes a second
    from matplotlib.figure import Figure

    longest = max((curve[-1][0] for curve in series.values() if curve), default=0)
    unit, seconds = unit_of(longest) if over_time else ("", 1)
    paint = {name: TEXT for name in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")}
    paint |= {name: FAINT for name in ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")}
    with matplotlib.rc_context({**paint, "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10}):
        figure = Figure((4.6, 2.7))
        figure.subplots_adjust(left=0.14, right=0.97, top=0.96, bottom=0.19)
        ax = figure.subplots()
        ax.spines[["top", "right"]].set_visible(False)
        values = []
        for number, curve in series.items():
            colour, line = style_of(number)
            points = [(x / seconds, y) for x, y in thinned(curve)]
            values += [y for _, y in points]
            if noisy and len(points) >= ROUGH:
                ax.plot(*zip(*points), color=colour, linestyle=line, linewidth=0.7, alpha=0.35)
                points = running_mean(points)
            mark = "o" if len(points) < 25 else None
            ax.plot(*(zip(*points) if points else ((), ())), color=colour, linestyle=line, marker=mark, markersize=3)
        if noisy and values and min(values) > 0 and max(values) > 20 * min(values):
            ax.set_yscale("log")
        ax.set_xlabel(f"time of its own steps ({unit})" if over_time else "steps")
        ax.grid(linewidth=0.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(file.getvalue())


def _inlined(svg: str) -> str:
    """The SVG element alone, in the page's width, colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # it would apply to the whole page
    svg = svg.replace(TEXT, "currentColor").replace(FAINT, "var(--faint)")
    return re.sub(r' id="\w+_\d+"', "", re.sub(r'font-family: [^;"]*', "font-family: inherit", svg))


def legend(names: Sequence[str]) -> list[dict]:
    """The name, colour and dash pattern of each series, for the page."""
    dashes = {"-": "", "--": "5 3", ":": "1.5 2.5", "-.": "6 2.5 1.5 2.5"}
    return [{"name": name, "colour": style_of(i)[0], "dash": dashes[style_of(i)[1]]} for i, name in enumerate(names)]
