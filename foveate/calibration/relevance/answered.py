"""A record's question with the model's own answer, and whether that answer is to have a map."""

from dataclasses import dataclass

from foveate.calibration.answers import ENOUGH, Rule, answer_worth
from foveate.calibration.dataset import Record
from foveate.calibration.torch_model import PreparedQuestion, TorchModel
from foveate.errors import ImageError, LimitError, PromptError


@dataclass(frozen=True, slots=True)
class Judging:
    """Which answers have maps.

    Attributes:
        rule: When an answer is right.
        keep_wrong: Those of wrong answers too.
        own_answers: Those of all answers: the data's own are not looked at.
        most: The longest answer, in tokens.
    """

    rule: Rule
    keep_wrong: bool
    own_answers: bool
    most: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was answered.

    Attributes:
        record: What was asked.
        question: It, prepared.
        tokens: The model's greedy answer.
        text: That answer as text.
        worth: What that is worth, from 0 to 1; 1 for the model's own answer where the data's are not
            looked at.
        fault: What is wrong with it; empty where it counts as right.
        usable: Whether it is to have a map.
    """

    record: Record
    question: PreparedQuestion
    tokens: list[int]
    text: str
    worth: float
    fault: str
    usable: bool


def ask(model: TorchModel, record: Record, judging: Judging) -> Asked | str:
    """Answer a record's question and judge the answer; or say why the record cannot be taken."""
    try:
        question = model.prepare(record.question, model.open(record))
    except (ImageError, LimitError, PromptError, OSError) as error:
        return str(error)
    tokens = model.answer(question, most=judging.most)
    text = model.text(tokens)
    worth, fault = 1.0, ""
    if not judging.own_answers:
        worth = answer_worth(text, record.answers, record.measure, judging.rule)
    if not text.strip():
        fault = "empty answer"
    elif worth < ENOUGH:
        fault = "wrong answer"
    usable = not fault or (judging.keep_wrong and fault == "wrong answer")
    return Asked(record, question, tokens, text, worth, fault, usable)
