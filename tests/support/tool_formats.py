"""Answers in the formats of well-known families, and what is in them.

The marks are those that the chat templates of the models show, and the tests of parsers in vLLM (tests/tool_parsers),
SGLang (test_function_call_parser.py), llama.cpp (tests/test-chat.cpp) and transformers (test_chat_parsing.py). The
contents are of our own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from langchain_specdec.chat.tool_calls import (
    BrokenToolCall,
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
    Piece,
    PythonicParser,
    QwenCoderParser,
    TekkenParser,
    ToolCall,
    ToolCallParser,
)

SCHEMAS: dict[str, Any] = {
    "ferry": {
        "type": "object",
        "properties": {
            "harbour": {"type": "string"},
            "cars": {"type": "integer"},
            "price": {"type": "number"},
            "is_return": {"type": "boolean"},
            "stops": {"type": "array", "items": {"type": "string"}},
            "owner": {"type": "object", "properties": {"name": {"type": "string"}}},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "deck": {"$ref": "#/$defs/Deck"},
        },
        "required": ["harbour"],
        "$defs": {"Deck": {"enum": ["upper", "lower"]}},
    },
    "tide": {"type": "object", "properties": {}},
}


class Recorded(NamedTuple):
    """What a model of a family writes, and what is in it."""

    parser: type[ToolCallParser]
    text: str
    pieces: Sequence[Piece]


def parse(parser: type[ToolCallParser], chunks: Sequence[str], schemas: Any = None) -> list[Piece]:
    """The pieces of a text that comes in chunks, neighbouring texts joined."""
    reader = parser(SCHEMAS if schemas is None else schemas)
    return joined([piece for chunk in chunks for piece in reader.feed(chunk)] + reader.close())


def check_cuts(parser: type[ToolCallParser], text: str, data: st.DataObject, schemas: Any = None) -> None:
    """A text gives the same pieces however it is cut, and calls that JSON carries onwards."""
    whole = parse(parser, [text], schemas)
    assert parse(parser, list(text), schemas) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(parser, chunks, schemas) == whole
    for piece in whole:
        if isinstance(piece, ToolCall):
            # LangChain, tracers and templates write them as JSON.
            assert json.loads(json.dumps(piece.arguments, allow_nan=False).encode("utf-8")) == piece.arguments


def joined(found: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbouring texts as one."""
    pieces: list[Piece] = []
    for piece in found:
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def ferry(**arguments: Any) -> ToolCall:
    return ToolCall("ferry", arguments)


def _deepseek(text: str) -> str:
    """With the marks of DeepSeek, whose bars and spaces are no ASCII."""
    return text.replace("<|", "<\uff5c").replace("|>", "\uff5c>").replace("_", "\u2581")


TIDE = ToolCall("tide", {})
CODE = 'def f(a):\n    if a < 2:\n        return "<b>"\n\n    return a'

RECORDED = {
    # Qwen3-Coder and Qwen3.5: chat templates of Qwen/Qwen3-Coder-30B-A3B-Instruct and Qwen/Qwen3.5-4B.
    "qwen_coder_one": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</parameter>\n<parameter=cars>\n2\n</parameter>\n"
        "</function>\n</tool_call>",
        [ferry(harbour="Kiel", cars=2)],
    ),
    "qwen_coder_types": Recorded(
        QwenCoderParser,
        "I look.\n\n<tool_call>\n<function=ferry>\n<parameter=harbour>\n12\n</parameter>\n<parameter=price>\n12\n"
        '</parameter>\n<parameter=is_return>\nTrue\n</parameter>\n<parameter=stops>\n["Kiel", "Oslo"]\n</parameter>\n'
        "<parameter=owner>\n{'name': 'Ann'}\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=deck>\n"
        "upper\n</parameter>\n<parameter=other>\n5\n</parameter>\n</function>\n</tool_call>\nDone.",
        [
            "I look.",
            ferry(
                harbour="12",
                price=12,
                is_return=True,
                stops=["Kiel", "Oslo"],
                owner={"name": "Ann"},
                note=None,
                deck="upper",
                other="5",
            ),
            "\nDone.",
        ],
    ),
    "qwen_coder_text_of_several_lines": Recorded(
        QwenCoderParser,
        f"<tool_call>\n<function=ferry>\n<parameter=harbour>\n{CODE}\n</parameter>\n</function>\n</tool_call>",
        [ferry(harbour=CODE)],
    ),
    "qwen_coder_without_outer_tags": Recorded(
        QwenCoderParser,
        "Two.\n<function=tide>\n</function>\n</tool_call>\n<tool_call>\n<function=tide></function>\n</tool_call>"
        "<function=ferry><parameter=harbour>Kiel</parameter></function> and text",
        ["Two.", TIDE, TIDE, ferry(harbour="Kiel"), " and text"],
    ),
    "qwen_coder_json": Recorded(
        QwenCoderParser,
        '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>',
        [TIDE],
    ),
    "qwen_coder_wrong_type": Recorded(
        QwenCoderParser,
        "<function=ferry>\n<parameter=cars>\nmany\n</parameter>\n</function>",
        [ferry(cars="many")],
    ),
    # As reported of Qwen3-Coder and Qwen3.5 in long contexts (vllm-project/vllm#23099, ollama/ollama#17914).
    "qwen_coder_unclosed_value": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n<parameter=cars>\n2\n</parameter>\n"
        "<parameter=note>\nWith\n<parameter=harbour>\nas text\n<parameter=note>\n</parameter>\n</function>\n"
        "</tool_call>",
        [ferry(harbour="Kiel", cars=2, note="With\n<parameter=harbour>\nas text\n<parameter=note>")],
    ),
    # The last end of a value is left out, as vLLM (tests/tool_parsers/test_qwen3coder_tool_parser.py) accepts it.
    "qwen_coder_unclosed_last_value": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</function>\n</tool_call>\n<function=ferry>\n"
        "<parameter=cars>\n2\n</parameter>\n<parameter=harbour>\nOslo\n</function>\n<tool_call>\n<function=ferry>\n"
        "<parameter=harbour>Ulm<parameter=note>\n<a>\n<parameter=cars>\n3\n</function></tool_call>\nDone.",
        [
            ferry(harbour="Kiel"),
            ferry(cars=2, harbour="Oslo"),
            ferry(harbour="Ulm<parameter=note>\n<a>", cars=3),
            "\nDone.",
        ],
    ),
    # Tags in a value that is closed are part of it.
    "qwen_coder_tags_in_a_value": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=harbour>\n<function=a>\n</function>\n</tool_call>\n, he said\n"
        "</parameter>\n</function>\n</tool_call>",
        [ferry(harbour="<function=a>\n</function>\n</tool_call>\n, he said")],
    ),
    "qwen_coder_unclosed_and_cut_off": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</function",
        [
            BrokenToolCall(
                "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</function",
                "The text ended within the call.",
                "ferry",
            )
        ],
    ),
    "qwen_coder_broken": Recorded(
        QwenCoderParser,
        "<tool_call>\n<function=ferry>\n<parameter=cars>\n2\n</parameter>\nwell\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=>\n</tool_call>\n<tool_call>\n<function=ferry>\n<parameter=cars>\n1\n</parameter>\n"
        "<parameter=cars>\n2\n</parameter>\n</function>\n</tool_call>",
        [
            BrokenToolCall(
                "<tool_call>\n<function=ferry>\n<parameter=cars>\n2\n</parameter>\nwell\n</function>\n</tool_call>",
                "A tag is missing.",
                "ferry",
            ),
            BrokenToolCall("<tool_call>\n<function=>\n</tool_call>", "There is no name."),
            BrokenToolCall(
                "<tool_call>\n<function=ferry>\n<parameter=cars>\n1\n</parameter>\n<parameter=cars>\n2\n</parameter>\n"
                "</function>\n</tool_call>",
                "The arguments cannot be read: 'cars' is there twice.",
                "ferry",
            ),
        ],
    ),
    "qwen_coder_named": Recorded(
        QwenCoderParser,
        "Write `<tool_call>` and `<function=NAME>`, or <tool_call> and <function=, with <function=x> within.\n"
        "<tool_call>\n<function=tide>\n</function>\n</tool_call>",
        ["Write `<tool_call>` and `<function=NAME>`, or <tool_call> and <function=, with <function=x> within.", TIDE],
    ),
    "qwen_coder_broken_without_outer_tags": Recorded(
        QwenCoderParser,
        "<function=ferry>Kiel</function><function=other><parameter=a>1</parameter>b</function>",
        [
            BrokenToolCall("<function=ferry>Kiel</function>", "A tag is missing.", "ferry"),
            BrokenToolCall(
                "<function=other><parameter=a>1</parameter>b</function>",
                "A tag is missing.",
                "other",
            ),
        ],
    ),
    "qwen_coder_cut_off": Recorded(
        QwenCoderParser,
        "So.\n<tool_call>\n<function=ferry>\n<parameter=harbour>\nKi",
        [
            "So.",
            BrokenToolCall(
                "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKi", "The text ended within the call.", "ferry"
            ),
        ],
    ),
    # GLM-4.5 to 4.7: chat template of zai-org/GLM-4.6.
    "glm_two": Recorded(
        GlmParser,
        "\nI look.\n<tool_call>ferry\n<arg_key>harbour</arg_key>\n<arg_value>São\nTomé</arg_value>\n<arg_key>"
        "cars</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>tide\n</tool_call>",
        ["\nI look.", ferry(harbour="São\nTomé", cars=3), TIDE],
    ),
    "glm_one_line": Recorded(
        GlmParser,
        "<tool_call>ferry<arg_key>harbour</arg_key><arg_value> Kiel</arg_value><arg_key>stops</arg_key>"
        '<arg_value>["a"]</arg_value></tool_call>',
        [ferry(harbour=" Kiel", stops=["a"])],
    ),
    "glm_broken": Recorded(
        GlmParser,
        "<tool_call>ferry\n<arg_key>harbour</arg_key>\nKiel</tool_call><tool_call>tide\n<arg_key>a",
        [
            BrokenToolCall(
                "<tool_call>ferry\n<arg_key>harbour</arg_key>\nKiel</tool_call>", "A tag is missing.", "ferry"
            ),
            BrokenToolCall("<tool_call>tide\n<arg_key>a", "The text ended within the call.", "tide"),
        ],
    ),
    "glm_named": Recorded(
        GlmParser,
        "The tags <tool_call> and </tool_call>, or `<tool_call>`.\n<tool_call>other<arg_key>a</arg_key><arg_value>1"
        "</arg_value></tool_call><tool_call>tide</tool_call>",
        ["The tags <tool_call> and </tool_call>, or `<tool_call>`.", ToolCall("other", {"a": "1"}), TIDE],
    ),
    # Llama 4: vLLM's tests/tool_parsers/test_llama4_pythonic_tool_parser.py and the model's chat template.
    "pythonic_two": Recorded(
        PythonicParser,
        "[ferry(harbour='Kiel', cars=2, price=1.5, is_return=True, note=None), tide()]",
        [ferry(harbour="Kiel", cars=2, price=1.5, is_return=True, note=None), TIDE],
    ),
    "pythonic_marked": Recorded(
        PythonicParser,
        '<|python_start|>[ferry(harbour="it\'s \\"(Kiel]\\" \\u00e9", stops=["a, b", \'c)\'], owner={"name": "Ann"})]'
        "<|python_end|>",
        [ferry(harbour='it\'s "(Kiel]" é', stops=["a, b", "c)"], owner={"name": "Ann"})],
    ),
    "pythonic_after_text": Recorded(
        PythonicParser,
        "I see [1] and [x(2)].\n[a, b]\n[tide()]\nDone",
        ["I see [1] and [x(2)].\n[a, b]", TIDE, "\nDone"],
    ),
    "pythonic_broken": Recorded(
        PythonicParser,
        "[ferry('Kiel')]\n[tide(}]\n[ferry(harbour=Kiel)]\n[ferry(harbour='Ki",
        [
            BrokenToolCall(
                "[ferry('Kiel')]", "The calls cannot be read: an argument has no name at character 8.", "ferry"
            ),
            BrokenToolCall("[tide(}", "A bracket does not match.", "tide"),
            "]",
            BrokenToolCall("[ferry(harbour=Kiel)]", "The calls cannot be read: no value at character 20.", "ferry"),
            BrokenToolCall("[ferry(harbour='Ki", "The text ended within the call.", "ferry"),
        ],
    ),
    "pythonic_text_between_marks": Recorded(
        PythonicParser,
        "<|python_start|>I look.<|python_end|>\n[tide()]",
        ["I look.", TIDE],
    ),
    # Llama 4 by its first template: JSON, and text between marks.
    "llama_4_json": Recorded(
        LlamaParser,
        '<|python_start|>I look.<|python_end|>\n{"name": "tide", "parameters": {}}',
        ["I look.", TIDE],
    ),
    "llama_4_marked_json": Recorded(
        LlamaParser,
        '<|python_start|>{"name": "ferry", "parameters": {"harbour": "Kiel"}}<|python_end|> Done',
        [ferry(harbour="Kiel"), " Done"],
    ),
    # LFM2: chat template of LiquidAI/LFM2-1.2B.
    "lfm_one": Recorded(
        LfmParser,
        '<|tool_call_start|>[ferry(harbour="Kiel")]<|tool_call_end|>I called.',
        [ferry(harbour="Kiel"), "I called."],
    ),
    "lfm_broken": Recorded(
        LfmParser,
        "<|tool_call_start|>ferry",
        [BrokenToolCall("<|tool_call_start|>ferry", "There is no list of calls.")],
    ),
    "lfm_named": Recorded(LfmParser, "`<|tool_call_start|>` is a mark.", ["`<|tool_call_start|>` is a mark."]),
    # Mistral Small 3.2 and later: tests of vLLM's mistral parser, template of mistralai/Magistral-Small-2507.
    "tekken_two": Recorded(
        TekkenParser,
        'Sure.[TOOL_CALLS]ferry[ARGS]{"harbour": "Kiel"}[TOOL_CALLS]tide[CALL_ID]a1B2c3D4e[ARGS]{}',
        ["Sure.", ferry(harbour="Kiel"), ToolCall("tide", {}, "a1B2c3D4e")],
    ),
    "mistral_old": Recorded(
        MistralParser,
        '[TOOL_CALLS] [{"name": "ferry", "arguments": {"harbour": "Kiel"}}, {"name": "tide", "arguments": {}}]',
        [ferry(harbour="Kiel"), TIDE],
    ),
    "mistral_named": Recorded(
        TekkenParser,
        'The [TOOL_CALLS] token, or "[TOOL_CALLS]".[TOOL_CALLS]other[ARGS]{}[TOOL_CALLS]tide {}',
        ['The [TOOL_CALLS] token, or "[TOOL_CALLS]".', ToolCall("other", {}), TIDE],
    ),
    # Gemma 4: llama.cpp's models/templates/gemma4.jinja, vLLM's and transformers' parsers of it.
    "gemma_two": Recorded(
        GemmaParser,
        'I look.<|tool_call>call:ferry{harbour:<|"|>Kiel, "Nord"}<|"|>,cars:2,is_return:false}<tool_call|>'
        "<|tool_call>call:tide{}<tool_call|>",
        ["I look.", ferry(harbour='Kiel, "Nord"}', cars=2, is_return=False), TIDE],
    ),
    "gemma_nested": Recorded(
        GemmaParser,
        '<|tool_call>call:ferry{owner:{name:<|"|>Ann<|"|>,<|"|>age<|"|>:-1.5e3},stops:[<|"|>a<|"|>,<|"|><tool_call|><|"|>],'
        "note:null,deck:upper}<tool_call|>",
        [ferry(owner={"name": "Ann", "age": -1500.0}, stops=["a", "<tool_call|>"], note=None, deck="upper")],
    ),
    "gemma_without_end": Recorded(GemmaParser, "<|tool_call>call:ferry{cars:2}", [ferry(cars=2)]),
    "gemma_broken": Recorded(
        GemmaParser,
        '<|tool_call>call:ferry{cars}<tool_call|><|tool_call>tide<tool_call|><|tool_call>call:ferry{harbour:<|"|>Ki',
        [
            BrokenToolCall(
                "<|tool_call>call:ferry{cars}<tool_call|>",
                "The arguments cannot be read: a name is missing at character 16.",
                "ferry",
            ),
            BrokenToolCall("<|tool_call>tide<tool_call|>", "There is no name, or there are no arguments."),
            BrokenToolCall('<|tool_call>call:ferry{harbour:<|"|>Ki', "The text ended within the call.", "ferry"),
        ],
    ),
    "gemma_named": Recorded(GemmaParser, "The <|tool_call> mark.", ["The <|tool_call> mark."]),
    # gpt-oss: openai/harmony docs/format.md, and vLLM's tests of openai_tool_parser.
    "harmony_call": Recorded(
        HarmonyParser,
        "<|channel|>analysis<|message|>They ask for <|channel|> a ferry.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.ferry <|constrain|>json<|message|>{"harbour": "Kiel <|call|>", "cars": 2}<|call|>',
        [ferry(harbour="Kiel <|call|>", cars=2)],
    ),
    "harmony_recipient_first": Recorded(
        HarmonyParser,
        ' to=functions.ferry<|channel|>commentary json<|message|>{"harbour": "Kiel"}',
        [ferry(harbour="Kiel")],
    ),
    "harmony_answer": Recorded(
        HarmonyParser,
        "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>final<|message|>At **noon**."
        "\n<|return|>",
        ["I look it up.\n\nAt **noon**.\n"],
    ),
    "harmony_headless": Recorded(HarmonyParser, " to be, or not to=be", [" to be, or not to=be"]),
    "harmony_named": Recorded(
        HarmonyParser,
        "<|channel|>final<|message|>The <|channel|> mark, and <|start|> too: `<|channel|>`.<|end|>",
        ["The <|channel|> mark, and <|start|> too: `<|channel|>`."],
    ),
    # As reported of gpt-oss-20b (ggml-org/llama.cpp#27720).
    "harmony_broken_header": Recorded(
        HarmonyParser,
        "<|channel|>?? hm<|end|><|start|>assistant<|channel|>final<|message|>At noon.",
        ["At noon."],
    ),
    "harmony_header_in_a_header": Recorded(
        HarmonyParser,
        "<|channel|>commentary to=assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>"
        "analysis<|channel|>final<|message|>At noon.",
        ["I look.\n\nAt noon."],
    ),
    "harmony_thought_without_end": Recorded(
        HarmonyParser,
        "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>At noon.",
        ["At noon."],
    ),
    "harmony_broken": Recorded(
        HarmonyParser,
        "<|channel|>commentary to=functions.ferry<|message|>Kiel<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.tide <|constrain|>json<|end|><|start|>assistant to=functions.ferry<|channel|>commentary"
        '<|message|>{"harbour": "Ki',
        [
            BrokenToolCall(
                "<|channel|>commentary to=functions.ferry<|message|>Kiel",
                "The arguments are no JSON object.",
                "ferry",
            ),
            BrokenToolCall(
                "<|start|>assistant<|channel|>commentary to=functions.tide <|constrain|>json",
                "There are no arguments.",
                "tide",
            ),
            BrokenToolCall(
                '<|start|>assistant to=functions.ferry<|channel|>commentary<|message|>{"harbour": "Ki',
                "The text ended within the call.",
                "ferry",
            ),
        ],
    ),
    # DeepSeek: chat templates of DeepSeek-V3.1 and DeepSeek-V3-0324, vLLM's tests of both parsers.
    "deepseek_two": Recorded(
        DeepSeekParser,
        _deepseek("I look.<|tool_calls_begin|><|tool_call_begin|>ferry<|tool_sep|>")
        + '{"harbour": "Kiel", "deck": "upper_deck"}'
        + _deepseek("<|tool_call_end|><|tool_call_begin|>tide<|tool_sep|>{}<|tool_call_end|><|tool_calls_end|>"),
        ["I look.", ferry(harbour="Kiel", deck="upper_deck"), TIDE],
    ),
    "deepseek_fenced": Recorded(
        DeepSeekV3Parser,
        _deepseek(
            '<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>ferry\n```json\n{"harbour": "Kiel"}\n```'
            "<|tool_call_end|>\n<|tool_call_begin|>function<|tool_sep|>tide\n```json\n{}\n```<|tool_call_end|>"
            "<|tool_calls_end|>"
        ),
        [ferry(harbour="Kiel"), TIDE],
    ),
    "deepseek_broken": Recorded(
        DeepSeekParser,
        _deepseek("<|tool_call_begin|>ferry<|tool_call_end|><|tool_call_begin|>ferry<|tool_sep|>{a}<|tool_call_end|>")
        + _deepseek('<|tool_call_begin|>tide<|tool_sep|>{"'),
        [
            BrokenToolCall(_deepseek("<|tool_call_begin|>ferry"), "There are no arguments."),
            BrokenToolCall(
                _deepseek("<|tool_call_begin|>ferry<|tool_sep|>{a}"),
                "The arguments are not JSON: Expecting property name enclosed in double quotes: "
                "line 1 column 2 (char 1).",
                "ferry",
            ),
            BrokenToolCall(
                _deepseek('<|tool_call_begin|>tide<|tool_sep|>{"'), "The text ended within the call.", "tide"
            ),
        ],
    ),
    # Phi-4-mini: llama.cpp's models/templates/llama-cpp-microsoft-Phi-4-mini-instruct.jinja.
    "phi_two": Recorded(
        PhiParser,
        '<|tool_call|>[{"name": "ferry", "arguments": {"harbour": "Kiel"}}, {"name": "tide", "arguments": {}}]'
        "<|/tool_call|>",
        [ferry(harbour="Kiel"), TIDE],
    ),
    # Granite 3.1 to 3.3: vLLM's tests/tool_parsers/test_granite_tool_parser.py.
    "granite_two": Recorded(
        GraniteParser,
        '<|tool_call|> [{"name": "ferry", "arguments": {"harbour": "Kiel"}}, {"name": "tide", "arguments": {}}]',
        [ferry(harbour="Kiel"), TIDE],
    ),
    "granite_broken": Recorded(
        GraniteParser,
        "<|tool_call|>ferry(Kiel)",
        [BrokenToolCall("<|tool_call|>ferry(Kiel)", "There is no JSON object.")],
    ),
    "granite_named": Recorded(GraniteParser, "The <|tool_call|> mark.", ["The <|tool_call|> mark."]),
    # Granite 4 writes as Hermes and Qwen do: vLLM's tests/tool_parsers/test_granite4_tool_parser.py.
    "granite_4": Recorded(
        HermesParser,
        '<tool_call>\n{"name": "ferry", "arguments": {"harbour": "Kiel"}}\n</tool_call>',
        [ferry(harbour="Kiel")],
    ),
}
FAMILIES = tuple(dict.fromkeys(recording.parser for recording in RECORDED.values()))
