"""With the template of each model family, exactly the assistant's turns are supervised, or the template is refused."""

import functools

import pytest

from lit_probsft.data import ByteTokenizer, tokenize_conversation, tokenize_prompt
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.errors import UserError
from tests.data.tokens.model_templates import FAMILIES, SPECIAL_TOKENS

USER, ASSISTANT = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Rain all day."}
SINGLE = [USER, ASSISTANT]
MULTI = [*SINGLE, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Sun,\n\nat last."}]
SYSTEM = [{"role": "system", "content": "Speak up."}, *MULTI]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "sky", "arguments": {"town": "Ulm", "day": 1}}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "wet", "tool_call_id": "abcdefghi"}
TOOLS = [USER, CALLS, RESULT, ASSISTANT, *MULTI[2:]]
TALK_AND_CALL = [USER, {**CALLS, "content": "Let me see."}, RESULT, ASSISTANT]
REASONING = [
    USER,
    {"role": "assistant", "content": "<think>\nClouds.\n</think>\n\nRain all day."},
    MULTI[2],
    {"role": "assistant", "content": "<think>\nWind.\n</think>\n\nSun,\n\nat last."},
]
SCHEMA = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object", "properties": {}}}}]


@functools.cache
def tokenizer_of(family):
    template, begin, end, _, _ = FAMILIES[family]
    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    tokenizer.eos_token = end
    if begin is not None:
        tokenizer.bos_token = begin
    tokenizer.chat_template = template
    return tokenizer


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def supervised(family, messages, **options):
    """The supervised texts. Also checks that nothing is lost, and that training starts with the prompt's tokens."""
    tokenizer, messages = tokenizer_of(family), validate_conversation(messages)
    tokens = tokenize_conversation(tokenizer, messages, **options)
    if options.get("reasoning") != "drop":
        rendered = tokenizer.apply_chat_template(messages, tools=options.get("tools"), tokenize=False)
        assert decode(tokenizer, tokens["input_ids"]) == rendered
    prompt = tokenize_prompt(tokenizer, messages, **options)
    assert tokens["input_ids"][: len(prompt)] == prompt
    assert (
        tokens["labels"][len(prompt)] != -100 or options.get("reasoning") == "mask" or options.get("turns") == "first"
    )
    spans, before = [], -100
    for label in tokens["labels"]:
        if label != -100:
            spans = [*spans, [label]] if before == -100 else [*spans[:-1], [*spans[-1], label]]
        before = label
    return [decode(tokenizer, ids) for ids in spans]


REFUSED = {
    ("gemma_2", "system"): "^chat_template: the template refuses the roles system, user.*System role not supported",
    ("mistral", "system"): "^chat_template: the generation prompt differs from the text before the last answer",
    ("deepseek_r1", "single"): "^chat_template: the generation prompt differs from the text before the last answer",
    ("deepseek_r1", "multi"): "^chat_template: the template renders earlier turns differently",
    ("deepseek_r1", "system"): "^chat_template: the template renders earlier turns differently",
}


@pytest.mark.parametrize(("kind", "messages"), [("single", SINGLE), ("multi", MULTI), ("system", SYSTEM)])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_supervised_with_its_end_token_and_nothing_else(family, kind, messages):
    if (family, kind) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[family, kind]):
            supervised(family, messages)
        return
    _, _, _, lead, end = FAMILIES[family]
    answers = [lead + turn["content"] + end for turn in messages if turn["role"] == "assistant"]
    if family == "qwen_3":  # the model generates what the template writes before the last answer
        answers[-1] = "<think>\n\n</think>\n\n" + answers[-1]
    assert supervised(family, messages) == answers
    assert supervised(family, messages, turns="last") == answers[-1:]
    assert supervised(family, messages, turns="first") == answers[:1]
    if len(answers) == 2:
        excluded = [{**turn, "train": False} if turn is ASSISTANT else turn for turn in messages]
        assert supervised(family, excluded) == answers[1:]


CALLED = {
    "qwen_2_5": '<tool_call>\n{"name": "sky", "arguments": {"town": "Ulm", "day": 1}}\n</tool_call><|im_end|>',
    "qwen_3": '<tool_call>\n{"name": "sky", "arguments": {"town": "Ulm", "day": 1}}\n</tool_call><|im_end|>',
    "llama_3_1": '{"name": "sky", "parameters": {"town": "Ulm", "day": 1}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "sky", "arguments": {"town": "Ulm", "day": 1}}]</s>',
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tool_call_is_supervised_and_its_result_is_not(family):
    if family not in CALLED:
        with pytest.raises(UserError, match=r"^chat_template: the template (leaves out tool calls|refuses the roles)"):
            supervised(family, TOOLS)
        return
    _, _, _, lead, end = FAMILIES[family]
    last = "<think>\n\n</think>\n\n" if family == "qwen_3" else ""
    answers = [CALLED[family], f"{lead}Rain all day.{end}", f"{lead}{last}Sun,\n\nat last.{end}"]
    assert supervised(family, TOOLS, tools=SCHEMA) == answers
    assert supervised(family, TOOLS, tools=SCHEMA, turns="last") == answers[-1:]


@pytest.mark.parametrize("family", CALLED)
def test_text_next_to_a_call_is_supervised_or_refused_if_left_out(family):
    if family in ("llama_3_1", "mistral"):
        with pytest.raises(UserError, match="^chat_template: the template leaves out .* 'Let me see.'"):
            supervised(family, TALK_AND_CALL, tools=SCHEMA)
    else:
        assert supervised(family, TALK_AND_CALL, tools=SCHEMA)[0] == f"Let me see.\n{CALLED[family]}"


def test_plain_text_refuses_tools_calls_and_reasoning():
    apart = [USER, {**ASSISTANT, "reasoning_content": "Clouds."}]
    for messages, tools, what in ((SINGLE, SCHEMA, "tools"), (TOOLS, None, "tool_calls"), (apart, None, "reasoning")):
        with pytest.raises(UserError, match=f"^format: plain text cannot represent {what}"):
            tokenize_conversation(tokenizer_of("chatml"), messages, tools=tools, plain_text=True)


def test_a_template_that_leaves_out_the_tools_is_refused():
    with pytest.raises(UserError, match="^chat_template: the template leaves out the tools"):
        supervised("chatml", SINGLE, tools=SCHEMA)


@pytest.mark.parametrize("family", FAMILIES)
def test_reasoning_is_supervised_masked_or_dropped(family):
    if family == "deepseek_r1":
        with pytest.raises(UserError, match="^chat_template: "):
            supervised(family, REASONING)
        return
    _, _, _, lead, end = FAMILIES[family]
    answers = [f"Rain all day.{end}", f"Sun,\n\nat last.{end}"]
    thoughts = ["<think>\nClouds.\n</think>\n\n", "<think>\nWind.\n</think>\n\n"]
    if family == "qwen_3":  # its template drops the first
        thoughts[0] = ""
    assert supervised(family, REASONING) == [lead + a + b for a, b in zip(thoughts, answers, strict=True)]
    masked = [text for text in supervised(family, REASONING, reasoning="mask") if text != lead]
    assert masked == answers
    dropped = supervised(family, REASONING, reasoning="drop")
    empty = "<think>\n\n</think>\n\n" if family == "qwen_3" else ""
    assert dropped == [lead + answers[0], lead + empty + answers[1]]


def test_reasoning_content_is_treated_like_think_tags():
    apart = [USER, {**ASSISTANT, "reasoning_content": "Clouds."}]
    assert supervised("qwen_3", apart) == ["<think>\nClouds.\n</think>\n\nRain all day.<|im_end|>"]
    assert supervised("qwen_3", apart, reasoning="mask") == ["Rain all day.<|im_end|>"]
    assert supervised("qwen_3", apart, reasoning="drop") == ["<think>\n\n</think>\n\nRain all day.<|im_end|>"]
    with pytest.raises(UserError, match="^chat_template: the template leaves out .* 'Clouds.'"):
        supervised("qwen_2_5", apart)
    assert supervised("qwen_2_5", apart, reasoning="drop") == ["Rain all day.<|im_end|>"]


def test_reasoning_opened_by_the_generation_prompt_is_masked_to_its_end():
    tokenizer = tokenizer_of("chatml")
    opening = FAMILIES["chatml"][0].replace("assistant\n' }}", "assistant\n<think>\n' }}")
    messages = [USER, {"role": "assistant", "content": "<think>\nClouds.\n</think>\n\nRain."}]
    for reasoning, expected in (("learn", "Clouds.\n</think>\n\nRain.<|im_end|>"), ("mask", "Rain.<|im_end|>")):
        tokens = tokenize_conversation(tokenizer, messages, chat_template=opening, reasoning=reasoning)
        assert decode(tokenizer, [label for label in tokens["labels"] if label != -100]) == expected


def test_masking_unclosed_reasoning_or_dropping_all_of_an_answer_is_refused():
    with pytest.raises(UserError, match="^reasoning: expected </think> after <think>"):
        supervised("chatml", [USER, {"role": "assistant", "content": "<think>\nClouds."}], reasoning="mask")
    with pytest.raises(UserError, match="^reasoning: expected an answer after </think>"):
        supervised("chatml", [USER, {"role": "assistant", "content": "<think>\nClouds.\n</think>"}], reasoning="drop")


def test_control_tokens_in_a_call_are_ordinary_text_and_refused_if_kept():
    call = {"function": {"name": "sky", "arguments": {"town": "<|im_end|>"}}}
    messages = [USER, {**CALLS, "tool_calls": [call]}]
    text = '<tool_call>\n{"name": "sky", "arguments": {"town": "<|im_end|>"}}\n</tool_call><|im_end|>'
    assert supervised("qwen_2_5", messages) == [text]
    with pytest.raises(UserError, match="^messages: expected no special token in a tool call"):
        supervised("qwen_2_5", messages, special_tokens_in_text="keep")


def test_a_template_that_leaves_out_the_system_turn_is_refused():
    silent = FAMILIES["chatml"][0].replace("for m in messages", "for m in messages if m.role != 'system'")
    with pytest.raises(
        UserError, match=r"^chat_template: the template leaves out or changes turn 0 \(system\), 'Speak up.'"
    ):
        tokenize_conversation(tokenizer_of("chatml"), SYSTEM, chat_template=silent)


def test_generation_marks_select_turns_when_there_is_one_per_turn():
    marked = FAMILIES["chatml"][0].replace(
        "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        "{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{% generation %}"
        "{{- m.content + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
        "{%- else %}{{- m.content + '<|im_end|>\n' }}{%- endif %}",
    )
    tokenizer = tokenizer_of("chatml")
    assert marked != FAMILIES["chatml"][0]
    for turns, expected in (("first", "Rain all day.<|im_end|>"), ("last", "Sun,\n\nat last.<|im_end|>")):
        tokens = tokenize_conversation(tokenizer, MULTI, chat_template=marked, turns=turns)
        assert decode(tokenizer, [label for label in tokens["labels"] if label != -100]) == expected
    twice = marked.replace(
        "m.content + '<|im_end|>' }}{% end", "m.content }}{% endgeneration %}{% generation %}<|im_end|>{% end"
    )
    both = tokenize_conversation(tokenizer, MULTI, chat_template=twice, require_end_of_turn=False)
    assert "Rain all day.<|im_end|>Sun" in decode(tokenizer, [label for label in both["labels"] if label != -100])
    with pytest.raises(
        UserError, match="^chat_template: the template marks 4 spans as generated for 2 assistant turns"
    ):
        tokenize_conversation(tokenizer, MULTI, chat_template=twice, turns="last")
