"""That the tables of the study are those of its raw results."""

import re

import pytest

from reproduce import study


@pytest.fixture(scope="module")
def page():
    return study.PAGE.read_text()


def test_the_page_shows_the_raw_results(page):
    assert study.filled(page) == page, "python -m reproduce.study writes the tables again"


def test_each_table_stands_in_the_page_once(page):
    assert sorted(re.findall(r"<!-- table: (.*?) -->", page)) == sorted(study.TABLES)


def test_a_number_that_was_changed_is_put_right(page):
    assert (
        study.filled("a\n<!-- table: rates -->\n| loss |\n| --- |\n| 1 |\nb\n")
        == f"a\n<!-- table: rates -->\n{study.rates()}\nb\n"
    )
    assert "**27.353**" in study.rates()


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="unknown table 'step'; did you mean steps"):
        study.filled("<!-- table: step -->\n")


def test_what_cannot_be_joined_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="steps time: expected each network, scale, loss and seed in one"):
        study.joined(["steps", "time"])
    read = study.collect.read
    monkeypatch.setattr(study.collect, "read", lambda folder: read(folder)._replace(names={"Set5": [folder.name]}))
    with pytest.raises(ValueError, match="steps rcan: expected the same test images"):
        study.joined(["steps", "rcan"])


def test_readme_shows_numbers_of_the_page(page):
    readme = (study.ROOT / "README.md").read_text()
    results = readme[readme.index("## Results") : readme.index("## The loss in your own")]
    gains = re.findall(r"[-+][\d.e-]+ \([^()]+\)", results)
    assert len(gains) >= 8
    assert all(gain in page for gain in gains)
