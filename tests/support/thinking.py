"""Chat templates in the shape of families that think, and scripted models with them.

The marks, and what switches thinking, are those of the templates that the models are published with: Qwen 3, its
Thinking-2507 and 3.5 series, SmolLM3, DeepSeek V3.1, Granite 3.3, Ministral 3 Reasoning, Gemma 4 and gpt-oss. Many are
in https://github.com/ggml-org/llama.cpp/tree/master/models/templates.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from langchain_specdec import ChatSpeculative
from tests.support.backends import Answer, ScriptedBackend
from tests.support.chat_templates import QWEN, chat_tokenizer

_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Thoughts after the last question are shown, as between calls of tools; earlier ones are not.
_ANSWER = "{{ '<|im_start|>assistant\n' + content }}"
_ANSWER_WITH_THOUGHT = (
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > last.question and message.reasoning_content %}"
    "{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ content }}"
)
_LAST = (
    "{% set last = namespace(question=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
)
_QWEN = _LAST + QWEN.replace(_ANSWER, _ANSWER_WITH_THOUGHT)
assert _QWEN.count("reasoning_content") == 2
assert _OPEN in _QWEN


def _prompting(generation: str, template: str = _QWEN) -> str:
    return template.replace(
        _OPEN, "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}" + generation + "{% endif %}"
    )


_NOT = "{{ '<think>\n\n</think>\n\n' }}"
_BEGUN = "{{ '<think>\n' }}"
QWEN3 = _prompting("{% if enable_thinking is defined and enable_thinking is false %}" + _NOT + "{% endif %}")
"""Thinks unless told not to, and begins each thought itself."""
QWEN35 = _prompting(
    "{% if enable_thinking is defined and enable_thinking is false %}" + _NOT + "{% else %}" + _BEGUN + "{% endif %}"
)
"""Thinks unless told not to, in a thought that the template begins."""
QWEN_THINKING = _prompting(_BEGUN)
"""Always thinks, in a thought that the template begins."""
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% if messages[0].role == 'system' and '/no_think' in messages[0].content %}{% set enable_thinking = false %}"
    "{% endif %}{{ '<|im_start|>system\nReasoning Mode: ' + ('/think' if enable_thinking else '/no_think') }}"
    "{{ '<|im_end|>\n' }}" + _prompting("{% if not enable_thinking %}" + _NOT + "{% endif %}", QWEN)
)
"""The same, told in its system message; it reads no earlier thoughts."""
DEEPSEEK = "{% if thinking is not defined %}{% set thinking = false %}{% endif %}" + _prompting(
    "{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}", QWEN
)
"""Thinks where it is told to."""
GRANITE = (
    "{% if thinking %}{{ '<|im_start|>system\nWrite your thoughts between <think></think> and write your response "
    "between <response></response>.<|im_end|>\n' }}{% endif %}" + QWEN
)
"""The same, with marks around the answer."""
MINISTRAL = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}{{ '[SYSTEM_PROMPT]Think in [THINK] and [/THINK].' }}"
    "{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
    "{% elif message.role == 'system' %}{{ '[SYSTEM_PROMPT]' + message.content }}{% else %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for block in message.content %}"
    "{% if block['type'] == 'thinking' %}{{ '[THINK]' + block['thinking'] + '[/THINK]' }}{% else %}{{ block['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Thinks where its own system message stands; thoughts are among the content."""
GEMMA4 = (
    "{% if enable_thinking | default(false) %}{{ '<|turn>system\n<|think|>\n<turn|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% if message.role == 'assistant' and message.reasoning_content and loop.last %}"
    "{{ '<|channel>thought\n' + message.reasoning_content + '<channel|>' }}{% endif %}"
    "{{ message.content + '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if not enable_thinking | default(false) %}"
    "{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
"""Thinks where it is told to, in a channel."""
HARMONY = (
    "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ '<|start|>system<|message|>Reasoning: ' + reasoning_effort + '<|end|>' }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{% if message.content and message.thinking and message.tool_calls %}"
    "{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}"
    "{% if message.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking }}"
    "{{ '<|end|>' }}{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""Always thinks, as much as it is told to."""
THINKING = {
    "qwen3": QWEN3,
    "qwen3.5": QWEN35,
    "qwen thinking": QWEN_THINKING,
    "smollm3": SMOLLM3,
    "deepseek": DEEPSEEK,
    "granite": GRANITE,
    "ministral": MINISTRAL,
    "gemma4": GEMMA4,
    "harmony": HARMONY,
}

_SPECIALS = (
    *("[THINK]", "[/THINK]", "[SYSTEM_PROMPT]", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"),
)


def thinking_tokenizer(template: str) -> Any:
    """The tokenizer of chats, with the special tokens of these templates too."""
    tokenizer = chat_tokenizer(template)
    added = [AddedToken(text, special=True, normalized=False) for text in _SPECIALS]
    tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def thinking(*answers: Answer, template: str = QWEN35, width: int = 1, **fields: Any) -> ChatSpeculative:
    """A chat with a scripted model that thinks."""
    backend = ScriptedBackend(*answers, template=template, width=width)
    backend.tokenizer = thinking_tokenizer(template)
    return ChatSpeculative(backend=backend, **fields)
