"""Self-contained pages: HTML that runs no script and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

HTML_MARK = '<meta name="generator" content="trtcal">'
"""Stands in the head of every page that trtcal writes."""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16202c; --soft: #55616f; --line: #d9dee5;
  --accent: #0062a3; --bad: #a32900; }
@media (prefers-color-scheme: dark) { :root { --page: #10151b; --card: #181f27; --ink: #e6ebf1; --soft: #9eabba;
  --line: #313c48; --accent: #6cbcf0; --bad: #ff9a76; } }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
a { color: var(--accent); }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
"""

TABLE_STYLE = """table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
"""
"""Rules of CSS for a page with tables, for :func:`document`."""


def document(title: str, body: str, style: str = "") -> str:
    """A title, which is escaped, and markup, which is not, with more rules of CSS -> the whole page."""
    text = escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{HTML_MARK}\n'
        f"<title>{text}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{text}</h1>\n{body}"
        f"</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Heads and rows of text, which is escaped -> markup; the first cell of a row names it."""
    head = "".join(f"<th scope=col>{escape(text)}" for text in heads)
    lines = "".join(
        f"<tr><th scope=row>{escape(name)}" + "".join(f"<td>{escape(cell)}" for cell in cells) + "\n"
        for name, *cells in rows
    )
    return framed(f"<tr>{head}", lines)


def framed(head: str, lines: str) -> str:
    """Markup of a table's first row and of the others -> the table, in a frame that scrolls sideways."""
    return f'<div class="wide" tabindex="0"><table><thead>{head}</thead>\n<tbody>\n{lines}</tbody></table></div>\n'
