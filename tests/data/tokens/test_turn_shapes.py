"""Turns with unusual ends and prompts: the text is the prompt for the last answer, and what the model has to write."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, tokenize_conversation, tokenize_prompt
from lit_probsft.data.tokens.added_tokens import with_added_tokens
from lit_probsft.data.tokens.earlier_turns import RewrittenHistory
from lit_probsft.data.tokens.prompts import option_of_prompts
from lit_probsft.data.tokens.rendering import Renderer
from lit_probsft.data.tokens.tokenization import describe_prompt_of
from lit_probsft.data.tokens.tokenizers import read_tokenizer, tokenizer_fingerprint
from lit_probsft.errors import UserError
from tests.data.tokens import turn_shapes
from tests.data.tokens.turn_shapes import SHAPES, SPECIAL_TOKENS


@functools.cache
def tokenizer():
    """Its end-of-text token ends no turn, unless a test sets it."""
    made = ByteTokenizer().load(list)
    made.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    return made


def decode(ids):
    return tokenizer().decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def ask(template, messages, options):
    """The prompt for an answer, as transformers renders it."""
    if template == turn_shapes.PARTS:
        messages = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
    return tokenizer().apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
    )


def pieces(tokens):
    """The text in pieces, in turn not supervised and supervised."""
    found, supervised = [[]], False
    for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True):
        if (label != -100) != supervised:
            found.append([])
            supervised = not supervised
        found[-1].append(token)
    return [decode(ids) for ids in found]


def conversation(*texts):
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


texts = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=8).map(str.strip)
texts = texts.filter(bool) | st.sampled_from(["end", "user", "think", "\n\nstop", "</b>", "...", "self"])


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=8, deadline=None)
@given(contents=st.lists(st.tuples(texts, texts.map(str.strip)), min_size=1, max_size=3))
def test_a_text_is_the_prompt_and_what_the_model_writes_until_it_stops(name, contents):
    template, options, lead, lead_of_last, end, end_of_last = SHAPES[name]
    messages = conversation(*(text for pair in contents for text in pair))
    tokens = tokenize_conversation(tokenizer(), messages, chat_template=template)
    expected = [lead + answer + end for _, answer in contents[:-1]] + [lead_of_last + contents[-1][1] + end_of_last]
    found = pieces(tokens)
    assert found[1::2] == expected
    assert "".join(found).startswith(ask(template, messages[:-1], options) + expected[-1])
    assert not "".join(found[2 * len(contents) :]).strip()
    prompt = tokenize_prompt(tokenizer(), messages, chat_template=template)
    assert decode(prompt) == ask(template, messages[:-1], options)
    assert tokens["input_ids"][: len(prompt)] == prompt
    last = pieces(tokenize_conversation(tokenizer(), messages, chat_template=template, turns="last"))
    assert last == ["".join(found[: 2 * len(contents) - 1]), *found[2 * len(contents) - 1 :]]


REASONED = conversation("q", "<think>\nClouds.\n</think>\n\nRain.")
APART = [REASONED[0], {"role": "assistant", "content": "Rain.", "reasoning_content": "Clouds."}]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("keeps blocks", {}, "Clouds.\n</think>Rain.<|end|>"),
        ("closes blocks", {"enable_thinking": True}, "Clouds.\n</think>Rain.<|end|>"),
        ("never blocks", {}, "Clouds.\n</think>\n\nRain.<|end|>"),
        ("only closes", {}, "Clouds.</think>Rain.<|end|>"),
    ],
)
def test_reasoning_follows_the_prompt_that_opens_it(name, options, expected):
    template = SHAPES[name][0]
    for messages in (REASONED, APART):
        found = pieces(tokenize_conversation(tokenizer(), messages, chat_template=template))
        assert found == [ask(template, messages[:-1], options), expected]
        masked = pieces(tokenize_conversation(tokenizer(), messages, chat_template=template, reasoning="mask"))
        assert masked[1::2] == ["Rain.<|end|>"]


def test_an_earlier_answer_starts_where_its_own_prompt_ends():
    kept = pieces(
        tokenize_conversation(
            tokenizer(), [*conversation("a", "b"), *REASONED], chat_template=SHAPES["keeps blocks"][0]
        )
    )
    assert kept[1::2] == ["b<|end|>", "Clouds.\n</think>Rain.<|end|>"]
    assert kept[0].endswith("<think></think>")
    dropped = pieces(
        tokenize_conversation(
            tokenizer(), [*REASONED, *conversation("a", "b")], chat_template=SHAPES["drops blocks"][0]
        )
    )
    assert dropped == [
        "<|user|>q<|assistant|>",
        "Rain.<|end|>",
        "<|user|>a<|assistant|><think></think>",
        "b<|end|>",
    ]


def test_reasoning_apart_reaches_a_template_under_the_name_that_it_reads():
    found = pieces(tokenize_conversation(tokenizer(), APART, chat_template=SHAPES["channels"][0]))
    assert found[1::2] == ["self<|text|>Clouds.<|end|><|assistant|>user<|text|>Rain.<|stop|>"]


def test_a_turn_reaches_to_the_end_of_text_where_the_template_writes_it():
    from copy import deepcopy

    stopping = deepcopy(tokenizer())
    stopping.eos_token = "<|stop|>"
    found = pieces(
        tokenize_conversation(stopping, conversation("q", "a", "q", "b"), chat_template=SHAPES["two ends"][0])
    )
    assert found[1::2] == ["a<|stop|>", "b<|stop|>"]


def test_a_token_that_begins_a_text_ends_no_turn():
    from copy import deepcopy

    beginning = deepcopy(tokenizer())
    beginning.bos_token = "<|user|>"
    with pytest.raises(UserError, match="^require_end_of_turn"):
        tokenize_conversation(beginning, conversation("q", "a"), chat_template=SHAPES["next role"][0])


def test_a_system_text_that_only_the_prompt_has_is_part_of_the_text():
    messages = [{"role": "system", "content": "Be kind."}, *conversation("a", "b", "c", "d")]
    template = turn_shapes.SYSTEM_IN_THE_LAST
    tokens = tokenize_conversation(tokenizer(), messages, chat_template=template)
    assert pieces(tokens)[1::2] == ["b<|end|>", "d<|end|>"]
    assert "".join(pieces(tokens)) == ask(template, messages[:-1], {}) + "d<|end|>"


def test_a_history_that_the_template_rewrites_is_an_error_of_its_own():
    messages = conversation("a", "b", "c", "d")
    template = turn_shapes.LEAVES_OUT
    with pytest.raises(RewrittenHistory, match=r"turn 1 cannot be found; .*`turns: last`"):
        tokenize_conversation(tokenizer(), messages, chat_template=template)
    found = pieces(tokenize_conversation(tokenizer(), messages, chat_template=template, turns="last"))
    assert found[1::2] == ["d<|end|>"]
    other_header = SHAPES["two ends"][0].replace("prompt %}{{- '<|assistant|>'", "prompt %}{{- '<|text|>'")
    with pytest.raises(UserError, match="differs from the text before the last answer") as caught:
        tokenize_conversation(tokenizer(), messages[:2], chat_template=other_header)
    assert not isinstance(caught.value, RewrittenHistory)


def test_a_prompt_that_is_not_the_templates_default_is_said():
    say = functools.partial(describe_prompt_of, tokenizer())
    plain = conversation("q", "a")
    assert say(plain, chat_template=SHAPES["keeps blocks"][0]).startswith("prompted with `enable_thinking: false`")
    assert say(APART, chat_template=SHAPES["keeps blocks"][0]) == ""
    dropped = say(APART, chat_template=SHAPES["keeps blocks"][0], reasoning="drop")
    assert dropped.startswith("prompted with `enable_thinking: false`, because the last answer has no reasoning")
    assert say(APART, chat_template=SHAPES["closes blocks"][0]).startswith("prompted with `enable_thinking: true`")
    assert say(plain, chat_template=SHAPES["never blocks"][0]).endswith("trained to close it at once")
    assert say(plain, chat_template=SHAPES["two ends"][0]) == say(plain[:1]) == say(plain, plain_text=True) == ""


def test_a_turn_reaches_to_a_stop_token_of_the_generation_config(tmp_path):
    import pickle

    from transformers import GenerationConfig

    tokenizer().save_pretrained(tmp_path)
    alone = read_tokenizer(str(tmp_path))
    GenerationConfig(eos_token_id=tokenizer().convert_tokens_to_ids(["<|stop|>", "<|im_end|>"])).save_pretrained(
        tmp_path
    )
    both = read_tokenizer(str(tmp_path))
    template, messages = SHAPES["two ends"][0], conversation("q", "a", "q", "b")
    for made, expected in (
        (alone, ["a<|stop|><|end|>", "b<|stop|><|end|>"]),
        (both, ["a<|stop|>", "b<|stop|>"]),
        (pickle.loads(pickle.dumps(both)), ["a<|stop|>", "b<|stop|>"]),
        (with_added_tokens(both, ["<new>"]), ["a<|stop|>", "b<|stop|>"]),
    ):
        assert pieces(tokenize_conversation(made, messages, chat_template=template))[1::2] == expected
    assert tokenizer_fingerprint(alone) != tokenizer_fingerprint(both)


@pytest.mark.parametrize("name", SHAPES)
def test_masked_reasoning_is_never_supervised(name):
    turns = [*conversation("q", "a"), {"role": "user", "content": "r"}, {**APART[-1], "reasoning_content": "Hm, so."}]
    ask = functools.partial(tokenize_conversation, tokenizer(), turns, chat_template=SHAPES[name][0])
    try:
        learnt = "".join(pieces(ask())[1::2])
    except UserError:
        return  # the template leaves out the reasoning
    assert "Hm, so." in learnt
    if name == "channels":  # writes it without tags
        with pytest.raises(UserError, match="^reasoning: `mask` needs a template"):
            ask(reasoning="mask")
    else:
        assert "Hm, so." not in "".join(pieces(ask(reasoning="mask"))[1::2])


def test_a_text_may_contain_the_word_that_probes_for_the_end_of_a_turn():
    tokens = tokenize_conversation(
        tokenizer(), conversation("xqzprobe", "xqzprobe"), chat_template=SHAPES["next role"][0]
    )
    assert pieces(tokens)[1::2] == ["\nxqzprobe<|user|>"]


def test_the_option_that_prompts_for_unknown_answers_lack_is_named():
    def option(name, reasons, **options):
        return option_of_prompts(Renderer(tokenizer(), SHAPES[name][0], options=options), reasons=reasons)

    assert option("keeps blocks", False) == "enable_thinking: false"
    assert option("closes blocks", True) == "enable_thinking: true"
    assert option("keeps blocks", False, enable_thinking=False) == option("keeps blocks", True) == ""
    assert option("closes blocks", False) == option("two ends", True) == option("never blocks", False) == ""
