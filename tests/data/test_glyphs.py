"""The Glyphs set as it is shipped; what holds for every embedded set is in test_embedded.py."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from test_embedded import credits_of

from l3rs.data.glyphs import glyphs_index, glyphs_split, load_glyphs

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
LISTS = yaml.safe_load((DATASETS / "glyphs.yaml").read_text())
VERSIONS = json.loads((DATASETS / "glyphs-fonts.json").read_text())["dependencies"]
CHARACTERS = [c for alphabet in LISTS["alphabets"] for c in alphabet["characters"]]


def character(name: str) -> str:
    """The character of an index row: `U+05D0 bold` is alef."""
    return chr(int(name.split()[0].removeprefix("U+"), 16))


def test_there_are_enough_classes_and_families() -> None:
    assert len(load_glyphs().classes) >= 150
    assert len({row["set"] for row in glyphs_index()}) >= 120


def test_split() -> None:
    split = glyphs_split().classes
    assert len(split["pretrain"]) == 75
    assert split["meta-train"] == split["meta-validation"] == ()
    assert len(split["meta-test"]) >= 75


def test_a_class_is_one_character() -> None:
    pairs = {(row["class"], character(row["name"])) for row in glyphs_index()}
    assert len(pairs) == len(load_glyphs().classes) == len(CHARACTERS)
    assert {c for _, c in pairs} == set(CHARACTERS)


def test_class_names_are_safe_as_file_names() -> None:
    assert all(c.isascii() and c == c.lower() and c.replace("-", "").isalnum() for c in load_glyphs().classes)
    assert {"latin-a", "latin-capital-a", "greek-omega", "digit-7", "sign-ampersand"} <= set(load_glyphs().classes)


def test_of_each_set_of_look_alikes_at_most_one_is_a_class() -> None:
    for alike in LISTS["look_alikes"]:
        assert len(set(alike)) == len(alike) >= 2, alike
        assert len(set(alike) & set(CHARACTERS)) <= 1, alike


def test_letters_are_in_both_cases_only_where_their_shapes_differ() -> None:
    assert {c for c in CHARACTERS if c.upper() != c and c.upper() in CHARACTERS} == set("adefhntæ") | set("δλξσςω")


def test_a_typeface_draws_a_character_once() -> None:
    rows = [(row["set"], row["name"]) for row in glyphs_index()]
    assert len(set(rows)) == len(rows)


def test_only_families_under_the_ofl_at_the_pinned_versions() -> None:
    for family, (_, copyright_line, licence, version, *_) in credits_of("glyphs").items():
        assert licence.startswith("[OFL-1.1]("), family
        assert copyright_line.lower().startswith(("copyright", "©")), family
        assert version == VERSIONS[f"@fontsource/{family}"], family
    assert {f"@fontsource/{family}" for family in credits_of("glyphs")} == set(VERSIONS)


def test_a_family_is_in_one_group_at_most_and_is_used() -> None:
    related = [family for group in LISTS["related_families"] for family in group]
    used = {row["set"] for row in glyphs_index()}
    assert len(set(related)) == len(related)
    assert used == {family for families in LISTS["families"].values() for family in families}
    assert set(related) <= used
    assert {family for families in LISTS["not_these"].values() for family in families} <= used
