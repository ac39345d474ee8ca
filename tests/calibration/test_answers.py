"""When an answer is right."""

import pytest

from foveate.calibration.answers import Rule, is_right, normalise, words_right


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" Yes,  it\tis. ", "yes it is"),
        ("The red-hot\nCircle!", "red-hot circle"),
        ("(a) dog, an owl", "a dog owl"),
        ("It's 3.5", "it's 3.5"),
        ("-5, .5 and -.5%", "-5 .5 and -.5"),
        ("E and A", "e and a"),
        ("A and E", "a and e"),
        ("A, B or C", "a b or c"),
        ("A", "a"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("e\u0301", "é"),
        ("“Stop”", "stop"),
        ("?!", "?!"),
        (" ", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("said", "answers", "exact", "contains"),
    [
        ("Red.", ["red"], True, True),
        ("Red.", ["blue", "the red"], True, True),
        ("It is red.", ["red"], False, True),
        ("It is a red circle", ["red circle"], False, True),
        ("It is a red, small circle", ["red circle"], False, False),
        ("reddish", ["red"], False, False),
        ("10", ["1"], False, False),
        ("A dog", ["A"], False, False),
        ("5", ["-5"], False, False),
        ("", ["red"], False, False),
        ("", [" "], False, False),
        ("red", [], False, False),
    ],
)
def test_rules(said: str, answers: list[str], exact: bool, contains: bool) -> None:
    rules: tuple[Rule, Rule] = ("exact", "contains")
    assert tuple(is_right(said, answers, rule) for rule in rules) == (exact, contains)


def test_words_right() -> None:
    right = ("red square, blue circle",)
    assert words_right("Blue circle, red square.", right) == 1
    assert words_right("a red square", right) == 0.5
    assert words_right("red red red red red", right) == 0.2
    assert words_right("red square and blue circle too", right) == pytest.approx(4 / 6)
    assert words_right("", right) == words_right("green", right) == 0
    assert words_right("red", ("blue circle", "red")) == 1
