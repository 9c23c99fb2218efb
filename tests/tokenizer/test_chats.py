"""Chats as the default model's tokenizer reads them: its own template, tools, and their sizes."""

from __future__ import annotations

import json

from sgl_actors.actors.tokenizer.messages import ChatMessage, Generate, Tokenize
from sgl_actors.actors.tokenizer.prompts import Prompts, size
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.lang.chat_template import ChatTemplate

TOOLS = '[{"type":"function","function":{"name":"now","parameters":{"type":"object"}}}]'
CALLS = '[{"id":"call_0","type":"function","function":{"name":"now","arguments":"{}"}}]'
QUESTION = ChatMessage("user", "When?")


def test_the_default_models_template(vocabulary: Vocabulary) -> None:
    """The default model's own template adds its system prompt and the generation prompt."""
    template = ChatTemplate(vocabulary.chat_template or "", vocabulary.tokens)
    assert template.render([ChatMessage("user", "Hi")]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        template.render([ChatMessage("system", "x")], add_generation_prompt=False)
        == "<|im_start|>system\nx<|im_end|>\n"
    )


def test_an_answered_call_goes_on_from_its_own_prompt(vocabulary: Vocabulary) -> None:
    """With the default model, the prompt with a call and its answer begins with the first prompt and what the model wrote, token by token."""
    prompts = Prompts(vocabulary)
    first = prompts.ids(Generate("1", messages=[QUESTION], tools=TOOLS))
    call = '<tool_call>\n{"name": "now", "arguments": {"zone": 1}}\n</tool_call>'
    written = vocabulary.encode(call)
    calls = json.dumps([{"function": {"name": "now", "arguments": '{"zone": 1}'}}])
    chat = [QUESTION, ChatMessage("assistant", "", calls), ChatMessage("tool", "noon", "", "", "now")]
    second = prompts.ids(Generate("2", messages=chat, tools=TOOLS))
    assert second[: len(first) + len(written)] == first + written
    assert prompts.tokenise(Tokenize(messages=chat, tools=TOOLS)).token_ids == second


def test_tools_and_calls_count_for_the_size() -> None:
    """What is refused as too large before it is tokenised includes tools and calls."""
    assert size(Generate("1", messages=[QUESTION, ChatMessage("assistant", "", CALLS)], tools=TOOLS)) > len(
        TOOLS
    ) + len(CALLS)
