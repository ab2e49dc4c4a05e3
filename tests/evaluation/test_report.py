"""The page: that it stands alone, and that every cell of a table has its headers; and decisions as rows."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure

from l3rs.evaluation.decisions import KEY, record
from l3rs.evaluation.pages import MISSING, Picture, Table, as_html, as_markdown, save_pictures
from l3rs.schedules.find import load


class Tags(HTMLParser):
    """All tags with their attributes; fails where they are not nested."""

    VOID = ("meta", "img", "link", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def sections() -> list[tuple[str, list[Table | Picture]]]:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    frame = pd.DataFrame([["1 < 2", MISSING]], pd.Index(["a & b"], name="optimizer"), ["x", "y"], dtype=object)
    table = Table("Table 1", "A caption.", frame, ("python make.py --it 'all of it'",))
    return [
        ("First", [table, Picture("Figure 1", "Seen.", 'A line "rises" from 0 to 1.', figure, (*table.commands, "python draw.py"))]),
        ("Last", [Picture("Figure 2", "Not yet.", "", None, ("make",))]),
    ]


def test_the_html_page_needs_nothing_else(sections: list[tuple[str, list[Table | Picture]]]) -> None:
    tags = Tags(as_html("A title", "A lead.\n\nAnother.", sections))
    assert not tags.of("script")
    assert not tags.of("link")
    assert [a["href"] for a in tags.of("a")] == ["#first", "#last"]
    (image,) = tags.of("img")
    assert str(image["src"]).startswith("data:image/webp;base64,")
    assert image["alt"] == 'A line "rises" from 0 to 1.'
    assert len(tags.of("h1")) == 1
    assert [h["id"] for h in tags.of("h2")] == ["first", "last"]
    assert tags.of("html") == [{"lang": "en"}]


def test_tables_have_captions_and_scopes(sections: list[tuple[str, list[Table | Picture]]]) -> None:
    page = as_html("A title", "A lead.", sections)
    tags = Tags(page)
    assert [h["scope"] for h in tags.of("th")] == ["col", "col", "col", "row"]
    assert len(tags.of("caption")) == len(tags.of("table")) == 1
    assert '<th scope="row">a &amp; b</th><td>1 &lt; 2</td><td class="missing">missing</td>' in page
    assert "python make.py --it &#x27;all of it&#x27;" in page
    identifiers = [a["id"] for _, a in tags.found if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    assert all(region["aria-labelledby"] in identifiers for region in tags.of("div"))


def test_long_cells_break_between_their_parts_and_captions_have_code() -> None:
    frame = pd.DataFrame([["+1.5 (1.0 to 2.0), n=5; 60%"]], pd.Index(["a"], name="network"), ["x"], dtype=object)
    page = as_html("A title", "Of `auto` & others.", [("First", [Table("Table 1", "What `a < b` is.", frame)])])
    assert "<td>+1.5 (1.0 to 2.0), <wbr>n=5; <wbr>60%</td>" in page
    assert "<p>Of <code>auto</code> &amp; others.</p>" in page
    assert "What <code>a &lt; b</code> is." in page
    Tags(page)


def test_the_markdown_page_has_the_same(sections: list[tuple[str, list[Table | Picture]]], tmp_path) -> None:  # type: ignore[no-untyped-def]
    page = as_markdown("A title", "A lead.", sections)
    assert "| optimizer | x | y |\n| --- | --- | --- |\n| a & b | 1 < 2 | missing |" in page
    assert '![A line "rises" from 0 to 1.](figures/figure-1.png)' in page
    assert "There are no rows for this figure yet." in page
    assert "python make.py --it 'all of it'" in page
    assert [f.name for f in save_pictures([i for _, items in sections for i in items if isinstance(i, Picture)], tmp_path)] == [
        "figure-1.png"
    ]


@pytest.mark.parametrize(
    ("page", "command"), [(as_html, "python make.py --it &#x27;all of it&#x27;"), (as_markdown, "python make.py --it 'all of it'")]
)
def test_a_section_ends_with_what_makes_all_that_it_lacks(page, command, sections: list[tuple[str, list[Table | Picture]]]) -> None:  # type: ignore[no-untyped-def]
    first, last = page("A title", "A lead.", sections).split("Figure 2.")
    assert f"{command}\npython draw.py\n" in first.replace("</code></pre>", "\n")
    assert first.count(command) == 1
    assert command not in last
    assert "These commands make the missing rows" in last


def test_decisions_are_a_function_of_schedule_and_task() -> None:
    learned = load("icons-resnet34-paper")
    rows = record(learned, 2, 0)
    assert rows.columns.to_list() == [*KEY, "kind", "depth", "lambda", "length", "mu_sgd", "mu_adam"]
    assert len(rows) == 2 * 110
    assert rows.kind.value_counts().to_dict() == {"convolution": 72, "scale": 72, "shift": 72, "head": 4}
    assert ((rows.mu_sgd + rows.mu_adam - 1).abs() < 1e-3).all()
    assert not rows["lambda"].equals(record(learned, 2, 1)["lambda"])
    pd.testing.assert_frame_equal(rows, record(learned, 2, 0))
