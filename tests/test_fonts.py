"""Class names in Hangul, with and without a font that has it. No test depends on what is installed."""

from types import SimpleNamespace

import matplotlib as mpl
import pytest

from gainmtl_lib import explain as fonts
from gainmtl_lib.explain import drawable, drawable_names, fonts_for

HANGUL = frozenset("양품불량")


@pytest.fixture
def installed(monkeypatch):
    """Replace the installed fonts by (name, characters) pairs; the default font stays."""
    read = fonts._characters

    def install(**known):
        entries = [SimpleNamespace(name=name.replace("_", " "), fname=name) for name in known]
        monkeypatch.setattr(fonts.font_manager, "fontManager", SimpleNamespace(ttflist=entries))
        monkeypatch.setattr(fonts, "_characters", lambda path: known[path] if path in known else read(path))

    fonts._family_with.cache_clear()
    default = fonts.font_manager.findfont(fonts.font_manager.FontProperties())
    monkeypatch.setattr(fonts.font_manager, "findfont", lambda properties: default)
    yield install
    fonts._family_with.cache_clear()


def test_latin_needs_no_search(installed):
    installed()
    assert fonts_for("normal, défectueux") == list(mpl.rcParams["font.family"])
    assert drawable_names(("OK", "NG")) == (("OK", "NG"), list(mpl.rcParams["font.family"]))


def test_hangul_takes_a_font_that_has_it(installed):
    installed(Another=HANGUL, NanumGothic=HANGUL, Latin=frozenset("ab"))
    names, families = drawable_names(("양품", "불량"))
    assert names == ("양품", "불량") and families == [*mpl.rcParams["font.family"], "NanumGothic"]


def test_without_such_a_font_names_are_english_with_a_warning(installed, caplog):
    installed(Latin=frozenset("ab"), Half=frozenset("양품"))
    names, families = drawable_names(("양품", "불량"))
    assert names == ("normal", "defective") and families == list(mpl.rcParams["font.family"])
    assert "no installed font can draw '양품' and '불량'; figures say 'normal' and 'defective' instead" in caplog.text


def test_placeholder_fonts_are_no_fonts(installed):
    installed(Last_Resort_High_Efficiency=HANGUL, **{".LastResort": HANGUL})
    assert fonts_for("양품") is None


def test_broken_fonts_are_stepped_over(installed, monkeypatch):
    installed(A=HANGUL, B=HANGUL)
    read = fonts._characters

    def broken(path):
        if path == "A":
            raise RuntimeError("cannot open resource")
        return read(path)

    monkeypatch.setattr(fonts, "_characters", broken)
    assert fonts_for("양품") == [*mpl.rcParams["font.family"], "B"]


def test_other_texts_lose_only_what_cannot_be_drawn(installed):
    installed()
    assert drawable("part_양품_1.png") == "part_??_1.png"
    assert drawable("plain.png") == "plain.png"
