"""Where a model's reasoning ends and its answer begins, by the marks that families of models use.

Marks: the model cards of DeepSeek-R1, Qwen3, Kimi and GLM; the names are those of SGLang's `--reasoning-parser`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sgl_actors.lang.errors import InvalidPrimitive


class Marks(NamedTuple):
    """What stands before and after the reasoning; with `always`, the text begins inside it, with or without the first mark."""

    begin: str
    end: str
    always: bool = False


MODELS: Final = {
    "deepseek-r1": Marks("<think>", "</think>", always=True),
    "deepseek-v3": Marks("<think>", "</think>"),
    "glm45": Marks("<think>", "</think>"),
    "kimi": Marks("◁think▷", "◁/think▷"),
    "kimi_k2": Marks("<think>", "</think>", always=True),
    "qwen3": Marks("<think>", "</think>"),
    "qwen3-thinking": Marks("<think>", "</think>", always=True),
    "step3": Marks("<think>", "</think>", always=True),
}


def check_model(model: object) -> str:
    """A known family; `InvalidPrimitive` names those there are."""
    if model not in MODELS:
        raise InvalidPrimitive(
            f"separate_reasoning: model_type is one of {', '.join(MODELS)}, not {model!r:.80}",
            param="model_type",
        )
    return str(model)


def separate(text: str, model: str) -> tuple[str, str]:
    """(reasoning, answer) of a generated text; reasoning that never ends leaves an empty answer.

    Example:
        >>> separate("<think>17 is prime.</think>Yes.", "qwen3")
        ('17 is prime.', 'Yes.')
    """
    marks = MODELS[model]
    begun = text.lstrip().startswith(marks.begin)
    if not begun and not marks.always:
        return "", text
    inside = text.lstrip().removeprefix(marks.begin)
    reasoning, _, answer = inside.partition(marks.end)
    return reasoning.strip(), answer.lstrip()
