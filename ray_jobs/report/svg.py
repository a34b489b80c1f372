"""From a matplotlib figure to an SVG that belongs into an HTML page: themed by CSS variables, small, and the same bytes every time.

matplotlib knows colours, not CSS variables. So the plots draw with stand-in colours (`INK`, `SERIES` …) that are replaced by
`var(--name)` afterwards: one picture serves light and dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, MUTED, RULE, SURFACE = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205")  # ordered: small to large
CATEGORIES = tuple(f"#0103{i:02x}" for i in range(1, 9))  # unordered
OTHER = "#010401"

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    SURFACE: "surface",
    OTHER: "other",
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)},
    **{colour: f"category-{i}" for i, colour in enumerate(CATEGORIES, 1)},
}
LIGHT = {
    "ink": "#1c2024",
    "muted": "#687076",
    "rule": "#dfe3e6",
    "surface": "#ffffff",
    "other": "#b8c0c6",
    "series-1": "#8fb8de",
    "series-2": "#3d7ebf",
    "series-3": "#123f73",
    "series-4": "#0a2545",
    "series-5": "#050f1c",
    "category-1": "#3d7ebf",
    "category-2": "#e08a2e",
    "category-3": "#4a9a62",
    "category-4": "#b8506b",
    "category-5": "#8269b8",
    "category-6": "#9a7550",
    "category-7": "#3aa3a3",
    "category-8": "#b9a83a",
}
DARK = {
    "ink": "#e8eaed",
    "muted": "#9aa3ab",
    "rule": "#343a40",
    "surface": "#16191c",
    "other": "#5a636b",
    "series-1": "#4273ac",
    "series-2": "#5d9ddb",
    "series-3": "#b5d7f5",
    "series-4": "#d6eafb",
    "series-5": "#f0f8ff",
    "category-1": "#5d9ddb",
    "category-2": "#eda356",
    "category-3": "#6cba84",
    "category-4": "#d97f97",
    "category-5": "#a690d6",
    "category-6": "#bb9870",
    "category-7": "#5cc0c0",
    "category-8": "#d2c25e",
}

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the reader's font
    "svg.hashsalt": "sft-diversity",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """How stand-in colours become real ones: None leaves CSS variables to the page, a palette writes its colours."""

    palette: dict[str, str] | None = None

    def colour(self, name: str) -> str:
        """Return what a stand-in is replaced by."""
        return f"var(--{name})" if self.palette is None else self.palette[name]


PAGE = Theme()


def css_variables(palette: dict[str, str]) -> str:
    """Return a palette as the declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def render(figure: Figure, name: str, label: str, titles: Mapping[str, Sequence[str]] | None = None, theme: Theme = PAGE) -> str:
    """Return the figure as an `<svg>` element.

    Args:
        figure: drawn under `SETTINGS` with stand-in colours.
        name: prefix of every id in it, so that several figures live in one page.
        label: what it shows, for those who can't see it.
        titles: gid of an artist -> what hovering over each of its marks shows, in drawing order.
        theme: what the stand-in colours become.
    """
    buffer = io.StringIO()
    with rc_context(SETTINGS):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    for gid, marks in (titles or {}).items():
        text = _with_titles(text, gid, marks)
    text = _own_ids(text, name)
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    attributes = f'viewBox="0 0 {width:g} {height:g}" stroke-linejoin="round" role="img" aria-label="{html.escape(label)}"'
    if theme.palette is not None:
        attributes += f' width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {attributes}>'
    text = head + text[text.index(">") + 1 :]
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, theme.colour(variable))
    return _slim(text, None if theme.palette is None else FONT)


def _slim(text: str, font: str | None) -> str:
    """Drop what says nothing, round to hundredths, and leave the font to the page unless one is given."""
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # a rule for every element of the page
    text = re.sub(r" font-family: [^;\"]*;", f" font-family: {font};" if font else "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)  # never in labels
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r"<g>\s*</g>|<g/>", "", text)
    return re.sub(r">\s+<", "><", text).strip()


def _with_titles(text: str, gid: str, marks: Sequence[str]) -> str:
    """Put a `<title>` into each `<use>` or, where there is none, each `<path>` of the group of that id."""
    start = text.index(f'<g id="{gid}"')
    end = _group_end(text, start)
    group = text[start:end]
    body = group[group.rindex("</defs>") + 7 :] if "</defs>" in group else group
    pattern = r"<use ([^>]*?)/>" if "<use " in body else r"<path ([^>]*?)/>"
    tag = "use" if "<use " in body else "path"
    remaining = iter(marks)

    def titled(match: re.Match[str]) -> str:
        title = next(remaining, None)
        return match[0] if title is None else f"<{tag} {match[1]}><title>{html.escape(title)}</title></{tag}>"

    return text[:start] + group[: len(group) - len(body)] + re.sub(pattern, titled, body) + text[end:]


def _group_end(text: str, start: int) -> int:
    """Return where the `<g>` that starts there is closed."""
    depth = 0
    for match in re.compile(r"<g[ >]|</g>").finditer(text, start):
        depth += 1 if match[0] != "</g>" else -1
        if depth == 0:
            return match.end()
    raise ValueError("the group is never closed")


def _own_ids(text: str, name: str) -> str:
    """Keep only ids that are referred to, under the figure's own prefix."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda match: f"{match[1]}{name}-{match[2]}", text)
