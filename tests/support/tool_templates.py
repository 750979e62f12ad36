"""Small chat templates with the marks of well-known families, and tokenizers that know these marks.

How each writes tools, calls and results is that of the model's own template; all else is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken

from langchain_specdec.chat.tool_calls import (
    DeepSeekParser,
    DeepSeekV3Parser,
    GemmaParser,
    GlmParser,
    GraniteParser,
    HarmonyParser,
    HermesParser,
    LfmParser,
    LlamaParser,
    MistralParser,
    PhiParser,
    PythonicParser,
    QwenCoderParser,
    TekkenParser,
    ToolCallParser,
)
from tests.support.chat_templates import LLAMA, MISTRAL, QWEN
from tests.support.tiny_models import byte_tokenizer

_BAR, _LOW = "\uff5c", "\u2581"


class Family(NamedTuple):
    """A family's template and tokens.

    Attributes:
        parser: What reads its calls.
        template: Its chat template.
        special: Its special tokens.
        plain: Tokens of their own that are not special.
        shown: How the call of `ferry` below, and its result, stand in a rendered history.
    """

    parser: type[ToolCallParser]
    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


_CHATML = ("<|im_start|>", "<|im_end|>")
_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def _chatml(taught: str, call: str, between: str = "", result: str = "<tool_response>\n%s\n</tool_response>") -> str:
    """A template of the form of ChatML in which calls are written in some way."""
    before, after = result.split("%s")
    return (
        f"{{{{ '<|im_start|>system\\n' }}}}{_TOOLS}{{{{ {taught!r} + '<|im_end|>\\n' }}}}"
        "{% for message in messages %}{% if message.role == 'tool' %}"
        f"{{{{ '<|im_start|>user\\n' + {before!r} + message.content + {after!r} }}}}"
        "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
        "{% for call in message.tool_calls or [] %}{% set function = call.function %}"
        f"{{% if not loop.first %}}{{{{ {between!r} }}}}{{% endif %}}{call}{{% endfor %}}{{% endif %}}"
        "{{ '<|im_end|>\n' }}{% endfor %}" + _PROMPT
    )


_VALUE = "{{ value if value is string else value | tojson }}"
QWEN_CODER = _chatml(
    "<tool_call>\n<function=example>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>",
    "{{ '<tool_call>\n<function=' + function.name + '>\n' }}{% for key, value in function.arguments | items %}"
    "{{ '<parameter=' + key + '>\n' }}" + _VALUE + "{{ '\n</parameter>\n' }}{% endfor %}"
    "{{ '</function>\n</tool_call>' }}",
    "\n",
)
GLM = _chatml(
    "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
    "{{ '<tool_call>' + function.name + '\n' }}{% for key, value in function.arguments | items %}"
    "{{ '<arg_key>' + key + '</arg_key>\n<arg_value>' }}" + _VALUE + "{{ '</arg_value>\n' }}{% endfor %}"
    "{{ '</tool_call>' }}",
    "\n",
)
PHI = _chatml(
    'Respond in this format: <|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>',
    "{{ '<|tool_call|>[' if loop.first }}{{ function | tojson }}{{ ']<|/tool_call|>' if loop.last }}",
    ", ",
)
GRANITE = PHI.replace("<|/tool_call|>", "").replace("<|im_start|>", "<|start_of_role|>")
_PYTHONIC_CALL = (
    "{{ '[' if loop.first }}{{ function.name + '(' }}{% for key, value in function.arguments | items %}"
    "{{ ', ' if not loop.first }}{{ key + '=' }}{{ value | tojson }}{% endfor %}{{ ')' }}{{ ']' if loop.last }}"
)
PYTHONIC = _chatml("Use the format [func_name1(param=value), func_name2(...)]", _PYTHONIC_CALL, ", ")
LFM = _chatml(
    "List of tools",
    "{{ '<|tool_call_start|>' if loop.first }}" + _PYTHONIC_CALL + "{{ '<|tool_call_end|>' if loop.last }}",
    ", ",
)
TEKKEN = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
    "{% elif message.role == 'system' %}{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}"
    "{% elif message.role == 'tool' %}{{ '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
# Arguments are in the notation of the calls, and results in turns of the model or of a tool.
GEMMA = (
    "{%- macro written(value) -%}{%- if value is string -%}{{ '<|\"|>' + value + '<|\"|>' }}"
    "{%- elif value is mapping -%}{{ '{' }}{%- for key, item in value | items -%}{{ key + ':' }}{{ written(item) }}"
    "{{ ',' if not loop.last }}{%- endfor -%}{{ '}' }}"
    "{%- elif value is sequence -%}{{ '[' }}{%- for item in value -%}{{ written(item) }}{{ ',' if not loop.last }}"
    "{%- endfor -%}{{ ']' }}{%- else -%}{{ value | tojson }}{%- endif -%}{%- endmacro -%}"
    "{{ bos_token }}{% if tools %}{{ '<|turn>system\n' }}{% for tool in tools %}{{ '<|tool>declaration:' }}"
    "{{ tool.function.name }}{{ written(tool.function.parameters) }}{{ '<tool|>' }}{% endfor %}"
    "{{ '<turn|>\n' }}{% endif %}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% if message.role == 'tool' %}{{ '<|tool_response>response:' + message.name + '{value:' }}"
    "{{ written(message.content) }}{{ '}<tool_response|>' }}"
    "{% else %}{{ message.content }}{% for call in message.tool_calls or [] %}{{ '<|tool_call>call:' }}"
    "{{ call.function.name }}{{ written(call.function.arguments) }}{{ '<tool_call|>' }}{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
# The first templates of Gemma 4 have results with the calls, and the answer goes on in the same turn.
GEMMA_RESPONSES = (
    GEMMA.replace("{% if message.role == 'tool' %}", "{% if false %}")
    .replace(
        "{% else %}{{ message.content }}{% for call",
        "{% else %}{% for call",
    )
    .replace(
        "{% endfor %}{% endif %}{{ '<turn|>\n' }}{% endfor %}",
        "{% endfor %}{% for result in message.tool_responses or [] %}{{ '<|tool_response>response:' + result.name }}"
        "{{ '{value:' }}{{ written(result.response) }}{{ '}<tool_response|>' }}{% endfor %}{{ message.content }}"
        "{% endif %}{% if message.content or not message.tool_responses %}{{ '<turn|>\n' }}{% endif %}{% endfor %}",
    )
    .replace("{% if add_generation_prompt %}", "{% if add_generation_prompt and not messages[-1].tool_responses %}")
)
# One call a message, and its result names the tool.
HARMONY = (
    "{{ '<|start|>system<|message|>Channels: analysis, commentary, final.<|end|>' }}"
    "{% if tools %}{{ '<|start|>developer<|message|>namespace functions {' }}{% for tool in tools %}"
    "{{ tool.function.name + ' ' }}{{ tool.function.parameters | tojson }}{% endfor %}{{ '}<|end|>' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|start|>functions.' + message.name + ' to=assistant<|channel|>commentary<|message|>' }}"
    "{{ message.content | tojson }}{{ '<|end|>' }}"
    "{% elif message.role == 'assistant' %}{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}"
    "{% if message.content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.content + '<|end|>' }}"
    "{% endif %}{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{ call.arguments | tojson }}{{ '<|call|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


def _deepseek(is_fenced: bool) -> str:
    """DeepSeek's, with tools as in vLLM's. In V3.1 it writes arguments as they come, and so takes them as text."""
    call = (
        "{{ call.type + '<SEP>' + call.function.name + '\n```json\n' }}{{ call.function.arguments | tojson }}"
        "{{ '\n```' }}"
        if is_fenced
        else "{{ call.function.name + '<SEP>' + call.function.arguments }}"
    )
    template = (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '<USER>' + message.content + '<ASSISTANT>' }}"
        "{% elif message.role == 'tool' %}{{ '<OUT>' + message.content + '<OUTEND>' }}"
        "{% elif message.role == 'assistant' %}{{ message.content }}{% if message.tool_calls %}{{ '<CALLS>' }}"
        "{% for call in message.tool_calls %}{{ '<CALL>' }}"
        + call
        + "{{ '<CALLEND>' }}{% endfor %}{{ '<CALLSEND>' }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    for name, text in _DEEPSEEK.items():
        template = template.replace(f"<{name}>", text)
    return template


_DEEPSEEK = {
    name: f"<{_BAR}{text.replace('_', _LOW)}{_BAR}>"
    for name, text in {
        "CALLSEND": "tool_calls_end",
        "CALLS": "tool_calls_begin",
        "CALLEND": "tool_call_end",
        "CALL": "tool_call_begin",
        "SEP": "tool_sep",
        "OUTEND": "tool_output_end",
        "OUT": "tool_output_begin",
        "USER": "User",
        "ASSISTANT": "Assistant",
    }.items()
}
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
_MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
_HERMES = ("<tool_call>", "</tool_call>")
_GLM = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_GEMMA = ("<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
_ARGUMENTS = '{"harbour": "Kiel", "cars": 2}'

FAMILIES = {
    "hermes": Family(
        HermesParser,
        QWEN,
        _CHATML,
        _HERMES,
        (f'<tool_call>\n{{"name": "ferry", "arguments": {_ARGUMENTS}}}\n</tool_call>', "<tool_response>\nNoon.\n"),
    ),
    "qwen coder": Family(
        QwenCoderParser,
        QWEN_CODER,
        _CHATML,
        _HERMES,
        (
            "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</parameter>\n<parameter=cars>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            "<tool_response>\nNoon.\n",
        ),
    ),
    "glm": Family(
        GlmParser,
        GLM,
        _CHATML,
        (*_HERMES, *_GLM),
        (
            "<tool_call>ferry\n<arg_key>harbour</arg_key>\n<arg_value>Kiel</arg_value>\n<arg_key>cars</arg_key>\n"
            "<arg_value>2</arg_value>\n</tool_call>",
            "<tool_response>\nNoon.\n",
        ),
    ),
    "llama": Family(LlamaParser, LLAMA, _LLAMA, (), (f'{{"name": "ferry", "parameters": {_ARGUMENTS}}}', '"Noon."')),
    "pythonic": Family(PythonicParser, PYTHONIC, _CHATML, (), ('[ferry(harbour="Kiel", cars=2)]', "Noon.")),
    "lfm": Family(
        LfmParser,
        LFM,
        (*_CHATML, "<|tool_call_start|>", "<|tool_call_end|>"),
        (),
        ('<|tool_call_start|>[ferry(harbour="Kiel", cars=2)]<|tool_call_end|>', "Noon."),
    ),
    "mistral": Family(
        MistralParser,
        MISTRAL,
        _MISTRAL,
        (),
        (f'[TOOL_CALLS][{{"name": "ferry", "arguments": {_ARGUMENTS}}}]', "[TOOL_RESULTS]Noon."),
    ),
    "tekken": Family(
        TekkenParser,
        TEKKEN,
        (*_MISTRAL, "[ARGS]", "[CALL_ID]"),
        (),
        (f"[TOOL_CALLS]ferry[ARGS]{_ARGUMENTS}", "[TOOL_RESULTS]Noon."),
    ),
    "gemma": Family(
        GemmaParser,
        GEMMA,
        _GEMMA,
        (),
        (
            '<|tool_call>call:ferry{harbour:<|"|>Kiel<|"|>,cars:2}<tool_call|>',
            '<|tool_response>response:ferry{value:<|"|>Noon.<|"|>}',
        ),
    ),
    "harmony": Family(
        HarmonyParser,
        HARMONY,
        _HARMONY,
        (),
        (
            f"<|start|>assistant to=functions.ferry<|channel|>commentary json<|message|>{_ARGUMENTS}<|call|>",
            '<|start|>functions.ferry to=assistant<|channel|>commentary<|message|>"Noon."',
        ),
    ),
    "deepseek": Family(
        DeepSeekParser,
        _deepseek(is_fenced=False),
        tuple(_DEEPSEEK.values()),
        (),
        (f"{_DEEPSEEK['CALL']}ferry{_DEEPSEEK['SEP']}{_ARGUMENTS}", f"{_DEEPSEEK['OUT']}Noon."),
    ),
    "deepseek v3": Family(
        DeepSeekV3Parser,
        _deepseek(is_fenced=True),
        tuple(_DEEPSEEK.values()),
        (),
        (
            f"{_DEEPSEEK['CALL']}function{_DEEPSEEK['SEP']}ferry\n```json\n{_ARGUMENTS}\n```{_DEEPSEEK['CALLEND']}",
            f"{_DEEPSEEK['OUT']}Noon.",
        ),
    ),
    "phi": Family(
        PhiParser,
        PHI,
        (*_CHATML, "<|tool_call|>", "<|/tool_call|>"),
        (),
        (f'<|tool_call|>[{{"name": "ferry", "arguments": {_ARGUMENTS}}}]<|/tool_call|>', "Noon."),
    ),
    "granite": Family(
        GraniteParser,
        GRANITE,
        ("<|start_of_role|>", "<|im_end|>", "<|tool_call|>"),
        (),
        (f'<|tool_call|>[{{"name": "ferry", "arguments": {_ARGUMENTS}}}]', "Noon."),
    ),
}


def family_tokenizer(family: Family) -> Any:
    """A byte-level tokenizer with the tokens of a family."""
    tokenizer = byte_tokenizer()
    special = [AddedToken(text, special=True, normalized=False) for text in family.special]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    tokenizer.chat_template = family.template
    return tokenizer
