"""A page of tables and pictures: as one HTML file that needs nothing else, and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from l3rs.plots import png, webp

MISSING = "missing"  # in place of a number without rows
LACKING = "These commands make the missing rows of this section:"


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        name: such as `Table 5`; unique.
        caption: its subject, and how to read its numbers.
        frame: text; its index heads the lines, and its name the first column.
        commands: make the missing rows.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture to show.

    Attributes:
        name: such as `Figure 3A`; unique.
        caption: its subject.
        alt: its content in words and numbers, for those who do not see it.
        figure: None without rows.
        commands: make the missing rows.
    """

    name: str
    caption: str
    alt: str
    figure: Figure | None
    commands: tuple[str, ...] = ()

    @cached_property
    def png(self) -> bytes:
        """The bytes of its file."""
        assert self.figure is not None
        return png(self.figure)

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{slug(self.name)}.png"


Section = tuple[str, Sequence[Table | Picture]]  # heading and items


def slug(name: str) -> str:
    """Makes a name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = [[str(table.index.name or ""), *map(str, table.columns)], ["---"] * (table.shape[1] + 1)]
    lines += [[str(head), *map(str, line)] for head, line in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands_of(items: Iterable[Table | Picture]) -> str:
    """Joins the commands that make the missing rows of items, each once, a line each."""
    return "\n".join(dict.fromkeys(command for item in items for command in item.commands))


def item_markdown(item: Table | Picture) -> str:
    """An item as Markdown."""
    parts = [f"**{item.name}.** {item.caption}"]
    if isinstance(item, Table):
        parts.append(table_markdown(item.frame))
    elif item.figure is not None:
        parts.append(f"![{item.alt}](figures/{item.file})")
    else:
        parts.append("There are no rows for this figure yet.")
    return "\n\n".join(parts)


def as_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Writes the page as Markdown; pictures are files in the folder `figures`. A section ends with commands for its missing rows."""
    parts = [f"# {title}", lead]
    for heading, items in sections:
        parts += [f"## {heading}", *map(item_markdown, items)]
        if commands := commands_of(items):
            parts.append(f"{LACKING}\n\n```sh\n{commands}\n```")
    return "\n\n".join(parts) + "\n"


OPENED = "<!-- table: "
FILLED = re.compile(rf"({OPENED}([^\n]*?) -->\n)(?:(?!{OPENED}).)*?(<!-- end of table -->)", re.DOTALL)


def fill(page: str, tables: Iterable[Table]) -> str:
    """Writes tables into a page of Markdown, each between `<!-- table: NAME -->` and `<!-- end of table -->`, each on its own line.

    Raises:
        ValueError: there is no such table, or one has no end.
    """
    if page.count(OPENED) != len(FILLED.findall(page)):
        raise ValueError("a table has no `<!-- end of table -->` before the next one, or before the end of the page")
    by_name = {table.name: table for table in tables}

    def block(found: re.Match[str]) -> str:
        if found[2] not in by_name:
            raise ValueError(f"there is no table {found[2]!r}; there are {', '.join(by_name)}")
        return f"{found[1]}{table_markdown(by_name[found[2]].frame)}\n{found[3]}"

    return FILLED.sub(block, page)


def table_html(table: Table) -> str:
    """Writes a table with its caption; every cell has its headers by `scope`. On narrow screens it scrolls."""
    frame, anchor = table.frame, slug(table.name)
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in (frame.index.name or "", *frame.columns))
    body = "\n".join(
        f'<tr><th scope="row">{escape(str(name))}</th>' + "".join(_cell(str(value)) for value in line) + "</tr>"
        for name, line in zip(frame.index, frame.to_numpy(), strict=True)
    )
    return (
        f'<div class="scroll" role="region" aria-labelledby="{anchor}" tabindex="0">\n<table>\n'
        f'<caption id="{anchor}"><strong>{escape(table.name)}.</strong> {_text(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cell(text: str) -> str:
    if text == MISSING:
        return f'<td class="missing">{text}</td>'
    parts = map(escape, re.split("(?<=[,;] )", text))  # a line may break between them, but not in one
    return f"<td>{'<wbr>'.join(parts)}</td>"


def _text(plain: str) -> str:
    """A caption: words between backticks are code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(plain))


def picture_html(picture: Picture) -> str:
    """Writes a picture into the page, with its caption and its content in words."""
    caption = f'<figcaption id="{slug(picture.name)}"><strong>{escape(picture.name)}.</strong> {_text(picture.caption)}</figcaption>'
    if picture.figure is None:
        return f'<figure>{caption}<p class="missing">There are no rows for this figure yet.</p></figure>'
    data = base64.b64encode(webp(picture.figure)).decode()
    return f'<figure>\n<img src="data:image/webp;base64,{data}" alt="{escape(picture.alt)}">\n{caption}\n</figure>'


def item_html(item: Table | Picture) -> str:
    """An item."""
    return table_html(item) if isinstance(item, Table) else picture_html(item)


def section_html(heading: str, items: Sequence[Table | Picture]) -> str:
    """Writes a section, with the commands for its missing rows at the end."""
    parts = [f'<section aria-labelledby="{slug(heading)}">', f'<h2 id="{slug(heading)}">{escape(heading)}</h2>', *map(item_html, items)]
    if commands := commands_of(items):
        parts.append(f'<p>{LACKING}</p>\n<pre tabindex="0"><code>{escape(commands)}</code></pre>')
    return "\n".join([*parts, "</section>"])


STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #c8c8c8; --soft: #f3f3f1; --link: #0b57a4; --faint: #666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #44484e; --soft: #22262b; --link: #8cc0f5; --faint: #a5a5a5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; color: var(--ink); background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
header p { max-width: 60rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 1rem; padding-top: .6rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
nav ul { padding-left: 1.2rem; columns: 18rem; }
nav li { padding: .3rem 0; break-inside: avoid; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; font-size: .9rem; width: min(60rem, calc(100vw - 2rem)); }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); vertical-align: top; }
wbr { white-space: normal; }
th:first-child { text-align: left; white-space: normal; min-width: 8.5rem; max-width: 18rem; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
.missing { color: var(--faint); font-style: italic; }
figure { margin: 2rem 0; }
img { display: block; width: 100%; max-width: 44rem; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; margin-top: .5rem; max-width: 44rem; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; border-radius: 4px; }
@media (min-width: 48rem) { th:first-child { min-width: 15rem; } }
@media print { body { max-width: none; } .scroll { overflow: visible; } pre { white-space: pre-wrap; } }
"""


def as_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Writes the page as one file: no scripts, no other files. `lead` is plain text; blank lines part paragraphs."""
    contents = "\n".join(f'<li><a href="#{slug(heading)}">{escape(heading)}</a></li>' for heading, _ in sections)
    paragraphs = "\n".join(f"<p>{_text(p)}</p>" for p in lead.split("\n\n"))
    body = "\n".join(section_html(heading, items) for heading, items in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<header>\n<h1>{escape(title)}</h1>\n{paragraphs}\n</header>\n<nav aria-label="Contents">\n<ul>\n{contents}\n</ul>\n</nav>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def save_pictures(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Writes the pictures that have rows as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        if picture.figure is not None:
            written.append(folder / picture.file)
            written[-1].write_bytes(picture.png)
    return written
