"""Text on sheets: wrapped, cut and spelled."""

from foveate.runtime.lettering import legible, typeface, wrapped


def test_text_wraps_and_is_cut_with_a_sign() -> None:
    font = typeface(16)
    lines = wrapped("some words " * 40 + "x" * 300, font, 300, 99)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == "somewords" * 40 + "x" * 300
    assert wrapped("A. one\nB. two", font, 300, 9) == ["A. one", "B. two"]
    cut = wrapped("words " * 100, font, 300, 2)
    assert len(cut) == 2
    assert cut[1].endswith("…")
    assert font.getlength(cut[1]) <= 300
    assert wrapped("", font, 300, 2) == [""]


def test_letters_that_the_font_lacks_are_spelled() -> None:
    assert legible("E 中\x1b", typeface(16)) == "E \\u4e2d\\x1b"
