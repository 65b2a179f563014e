"""Which papers are answered for, and by which names."""

from __future__ import annotations

from cnnkit.catalogue import entries, papers, titles


def test_every_paper_has_a_title_and_a_home_and_every_entry_names_a_known_paper():
    assert len(titles()) == 270
    for slug, row in titles().items():
        assert slug and row["title"] and row["home"], slug
    for name, entry in entries().items():
        assert entry.paper == "" or entry.paper in titles(), name


def test_papers_name_what_implements_them():
    found = {paper.slug: paper for paper in papers()}
    assert list(found) == list(titles())
    convnext = found["convnext"]
    assert convnext.to_json()["built"] is True and all(entries()[name].paper == "convnext" for name in convnext.names)
    assert set(convnext.names) == {name for name, entry in entries().items() if entry.paper == "convnext"}
    missing = next(paper for paper in found.values() if not paper.names)
    assert missing.to_json()["built"] is False
