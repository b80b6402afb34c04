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


# What these write before an answer is not what their prompt for it has.
PROMPT_DIFFERS = {("deepseek_r1", kind) for kind in ("single", "multi", "system", "reasoning")} | {
    ("mistral", "system")
}


def supervised(family, messages, kind=None, **options):
    """The supervised texts. Also checks that nothing is lost, and that training starts with the prompt's tokens."""
    tokenizer, messages = tokenizer_of(family), validate_conversation(messages)
    tokens = tokenize_conversation(tokenizer, messages, **options)
    if options.get("reasoning") != "drop":
        render = functools.partial(tokenizer.apply_chat_template, tools=options.get("tools"), tokenize=False)
        text = decode(tokenizer, tokens["input_ids"])
        assert text.startswith(render(messages[:-1], add_generation_prompt=True))
        assert text == render(messages) or (family, kind) in PROMPT_DIFFERS
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


# What the model writes before and behind the last answer only.
BEFORE_LAST = {"qwen_3": "<think>\n\n</think>\n\n", "deepseek_r1": "\n</think>\n\n"}
BEHIND_LAST = {"phi_3": "\n<|endoftext|>"}

REFUSED = {
    ("gemma_2", "system"): "^chat_template: the template refuses the roles system, user.*System role not supported",
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
    answers[-1] = BEFORE_LAST.get(family, "") + answers[-1] + BEHIND_LAST.get(family, "")
    assert supervised(family, messages, kind) == answers
    assert supervised(family, messages, kind, turns="last") == answers[-1:]
    assert supervised(family, messages, kind, turns="first") == answers[:1]
    if len(answers) == 2:
        excluded = [{**turn, "train": False} if turn is ASSISTANT else turn for turn in messages]
        assert supervised(family, excluded, kind) == answers[1:]


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
    _, _, _, lead, end = FAMILIES[family]
    answers = [f"Rain all day.{end}", f"Sun,\n\nat last.{end}{BEHIND_LAST.get(family, '')}"]
    thoughts = ["<think>\nClouds.\n</think>\n\n", "<think>\nWind.\n</think>\n\n"]
    if family == "qwen_3":  # its template drops the first
        thoughts[0] = ""
    elif family == "deepseek_r1":  # and this one drops what is before the answer, whose line breaks remain
        thoughts = ["\n\n", "Wind.\n</think>\n\n"]
    learnt = [lead + a + b for a, b in zip(thoughts, answers, strict=True)]
    assert supervised(family, REASONING, "reasoning") == learnt
    masked = [text.lstrip("\n") for text in supervised(family, REASONING, "reasoning", reasoning="mask")]
    assert [text for text in masked if text != lead] == answers
    dropped = supervised(family, REASONING, reasoning="drop")
    assert dropped == [lead + answers[0], lead + BEFORE_LAST.get(family, "") + answers[1]]


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


@pytest.mark.parametrize("tokenize", [tokenize_conversation, tokenize_prompt])
def test_a_template_that_leaves_out_the_system_turn_is_refused(tokenize):
    silent = FAMILIES["chatml"][0].replace("for m in messages", "for m in messages if m.role != 'system'")
    with pytest.raises(
        UserError, match=r"^chat_template: the template leaves out or changes turn 0 \(system\), 'Speak up.'"
    ):
        tokenize(tokenizer_of("chatml"), SYSTEM, chat_template=silent)


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

    def supervise(template, **options):
        tokens = tokenize_conversation(tokenizer, MULTI, chat_template=template, **options)
        return decode(tokenizer, [label for label in tokens["labels"] if label != -100])

    twice = "m.content }}{% endgeneration %}BETWEEN{% generation %}<|im_end|>{% end"
    touching, parted = (
        marked.replace("m.content + '<|im_end|>' }}{% end", twice.replace("BETWEEN", text)) for text in ("", "~")
    )
    assert supervise(touching, turns="last") == "Sun,\n\nat last.<|im_end|>"
    assert supervise(parted, turns="last", require_end_of_turn=False) == "Sun,\n\nat last.<|im_end|>"
    # Nothing shows where a turn starts in a text whose beginning depends on its end and repeats all contents.
    repeated = "{{- messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}" + parted
    assert "Rain all day.<|im_end|>Sun" in supervise(repeated, require_end_of_turn=False)
    with pytest.raises(
        UserError, match="^chat_template: the template marks 4 spans as generated for 2 assistant turns"
    ):
        supervise(repeated, turns="last")
