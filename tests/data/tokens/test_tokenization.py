import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import tokenize_conversation, tokenize_prompt
from lit_probsft.errors import UserError
from tests.data.chat_templates import (
    CHATML,
    ENDS_TWICE,
    INSTRUCTIONS,
    MARKED,
    MARKS_WITHOUT_END,
    NEVER_ENDS,
    NO_SYSTEM,
    REWRITES_HISTORY,
    SUPERVISABLE,
)

SINGLE = [{"role": "user", "content": "2 + 2 = ?"}, {"role": "assistant", "content": "It is 4."}]
MULTI = [*SINGLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes,\n\nvery much so."}]


ALL_MARKED = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def render(tokenizer, messages, template):
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


def ask(tokenizer, messages, template):
    """The prompt for an answer."""
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def supervised_texts(tokenizer, tokens):
    """The supervised texts."""
    spans, previous = [], False
    for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True):
        if label != -100:
            assert label == token
            if not previous:
                spans.append([])
            spans[-1].append(token)
        previous = label != -100
    return [decode(tokenizer, ids) for ids in spans]


@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("name", SUPERVISABLE)
def test_exactly_the_assistants_text_and_its_end_of_turn_are_supervised(many_specials, name, messages):
    template, end = SUPERVISABLE[name]
    tokens = tokenize_conversation(many_specials, messages, chat_template=template)
    lead = " " if template is INSTRUCTIONS else ""
    answers = [lead + message["content"] + end for message in messages if message["role"] == "assistant"]
    assert supervised_texts(many_specials, tokens) == answers
    assert decode(many_specials, tokens["input_ids"]) == render(many_specials, messages, template)


@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("name", SUPERVISABLE)
def test_a_prompt_equals_the_training_tokens_before_the_last_answer(many_specials, name, messages):
    template, _ = SUPERVISABLE[name]
    tokens = tokenize_conversation(many_specials, messages, chat_template=template)
    prompt = tokenize_prompt(many_specials, messages, chat_template=template)
    assert tokens["input_ids"][: len(prompt)] == prompt
    assert all(label != -100 for label in tokens["labels"][len(prompt) : len(prompt) + len(messages[-1]["content"])])
    assert prompt == tokenize_prompt(many_specials, messages[:-1], chat_template=template)


texts = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.none() | texts)
def test_marks_and_prefixes_give_the_same_mask_and_tokens_decode_to_the_text(
    byte_tokenizer, bpe_tokenizer, pairs, system
):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for tokenizer in (byte_tokenizer, bpe_tokenizer):
        by_prefix = tokenize_conversation(tokenizer, messages, chat_template=CHATML)
        assert tokenize_conversation(tokenizer, messages, chat_template=MARKED) == by_prefix
        assert tokenize_conversation(tokenizer, messages) == by_prefix
        assert decode(tokenizer, by_prefix["input_ids"]) == render(tokenizer, messages, CHATML)
        assert supervised_texts(tokenizer, by_prefix) == [f"{answer}<|im_end|>" for _, answer in pairs]
        prompt = tokenize_prompt(tokenizer, messages, chat_template=CHATML)
        assert by_prefix["input_ids"][: len(prompt)] == prompt


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_plain_text_concatenates_the_turns_with_an_end_token_after_each_answer(bpe_tokenizer, pairs):
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    tokens = tokenize_conversation(bpe_tokenizer, messages, plain_text=True)
    assert decode(bpe_tokenizer, tokens["input_ids"]) == "".join(f"{q}{a}<|im_end|>" for q, a in pairs)
    assert supervised_texts(bpe_tokenizer, tokens) == [f"{a}<|im_end|>" for _, a in pairs]
    prompt = tokenize_prompt(bpe_tokenizer, messages, plain_text=True)
    assert tokens["input_ids"][: len(prompt)] == prompt


@settings(max_examples=80, deadline=None)
@given(st.lists(texts, min_size=2, max_size=4).filter(lambda contents: len(contents) % 2 == 0))
def test_ids_equal_those_of_the_tokenizer_for_each_piece(byte_tokenizer, bpe_tokenizer, contents):
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)
    ]
    for tokenizer in (byte_tokenizer, bpe_tokenizer):
        pieces = [piece for q, a in zip(contents[::2], contents[1::2], strict=True) for piece in (q, f"{a}<|im_end|>")]
        expected = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        assert tokenize_conversation(tokenizer, messages, plain_text=True)["input_ids"] == expected


@pytest.mark.parametrize(
    "leave_behind",
    [
        lambda tokenizer: tokenizer("ab", truncation=True, max_length=4),
        lambda tokenizer: tokenizer("ab", padding="max_length", max_length=99),
        lambda tokenizer: tokenizer("ab", split_special_tokens=True),
        lambda tokenizer: tokenizer.backend_tokenizer.enable_truncation(4),
    ],
    ids=["truncation", "padding", "special tokens split", "truncation in the file"],
)
def test_settings_left_by_an_earlier_call_do_not_change_the_tokens(byte_tokenizer, leave_behind):
    from copy import deepcopy

    tokenizer = deepcopy(byte_tokenizer)
    expected = tokenize_conversation(tokenizer, MULTI)
    leave_behind(tokenizer)
    assert tokenize_conversation(tokenizer, MULTI) == expected


def test_a_tokenizer_with_its_own_encoding_code_is_called_itself(byte_tokenizer):
    class Shouting(type(byte_tokenizer)):
        def _encode_plus(self, text, **options):
            return super()._encode_plus(text.upper(), **options)

    tokenizer = Shouting(tokenizer_object=byte_tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokens = tokenize_conversation(tokenizer, SINGLE, plain_text=True)
    assert decode(tokenizer, tokens["input_ids"]) == "2 + 2 = ?IT IS 4.<|IM_END|>"


def test_no_token_straddles_the_edge_of_a_turn(bpe_tokenizer):
    messages = [{"role": "user", "content": "How many app"}, {"role": "assistant", "content": "les are left?"}]
    tokens = tokenize_conversation(bpe_tokenizer, messages, plain_text=True)
    assert supervised_texts(bpe_tokenizer, tokens) == ["les are left?<|im_end|>"]
    whole = bpe_tokenizer("How many apples are left?<|im_end|>")["input_ids"]
    assert len(tokens["input_ids"]) > len(whole)  # encoded whole, a token straddles the edge


def test_an_answer_that_is_part_of_the_end_token_is_found(byte_tokenizer):
    for answer in ("m", "end", "im_end", "|"):
        messages = [SINGLE[0], {"role": "assistant", "content": answer}]
        tokens = tokenize_conversation(byte_tokenizer, messages, chat_template=CHATML)
        assert supervised_texts(byte_tokenizer, tokens) == [f"{answer}<|im_end|>"]


def test_a_tokenizer_that_prepends_a_blank_encodes_the_whole_text_at_once(metaspace_tokenizer):
    messages = [{"role": "user", "content": "apples left?"}, {"role": "assistant", "content": "12 apples"}]
    tokens = tokenize_conversation(metaspace_tokenizer, messages, chat_template=INSTRUCTIONS)
    assert tokens["input_ids"] == metaspace_tokenizer(render(metaspace_tokenizer, messages, INSTRUCTIONS))["input_ids"]
    assert [text.strip() for text in supervised_texts(metaspace_tokenizer, tokens)] == ["12 apples</s>"]
    messages[0]["content"] = "app"
    messages[1]["content"] = "les"
    with pytest.raises(UserError, match=r"^tokenizer: one token straddles the edge .*'app' \+ 'les"):
        tokenize_conversation(metaspace_tokenizer, messages, plain_text=True)


def test_plain_text_begins_with_the_token_that_the_tokenizer_adds(many_specials):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(many_specials)
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokens = tokenize_conversation(tokenizer, SINGLE, plain_text=True)
    assert decode(tokenizer, tokens["input_ids"]) == "<s>2 + 2 = ?It is 4.<|im_end|>"
    assert tokens["labels"][0] == -100
    assert tokenize_prompt(tokenizer, SINGLE, plain_text=True)[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            NO_SYSTEM,
            [{"role": "system", "content": "s"}, *SINGLE],
            r"^chat_template: the template refuses the roles .*not supported",
        ),
        (NEVER_ENDS, SINGLE, r"(?s)^require_end_of_turn: .*never learn to stop.*⟦It is 4.\n?⟧"),
        (MARKS_WITHOUT_END, SINGLE, r"(?s)^require_end_of_turn: .*⟦It is 4.⟧<\|im_end\|>"),
        (REWRITES_HISTORY, MULTI, r"(?s)^chat_template: the template renders earlier turns differently.*\(left out\)"),
        ("{% for m in messages %}", SINGLE, "^chat_template: not valid Jinja"),
        ("{{ messages[9]['content'].x }}", SINGLE, "^chat_template: "),
        ("{% generation %}{% endgeneration %}hello", SINGLE, r"^chat_template: the mask supervises nothing"),
        ("hello{% if false %}{% generation %}{% endgeneration %}{% endif %}", SINGLE, "marks cover nothing"),
        (ALL_MARKED, SINGLE, "the mask supervises everything: 18 of 18"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}hi{% endif %}{% endfor %}", SINGLE, "supervises nothing"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_template_that_cannot_be_masked_correctly_is_refused_with_its_text(
    byte_tokenizer, template, messages, message
):
    with pytest.raises(UserError, match=message):
        tokenize_conversation(byte_tokenizer, messages, chat_template=template)


def test_require_end_of_turn_false_allows_an_answer_without_end(byte_tokenizer):
    tokens = tokenize_conversation(byte_tokenizer, SINGLE, chat_template=MARKS_WITHOUT_END, require_end_of_turn=False)
    assert supervised_texts(byte_tokenizer, tokens) == ["It is 4."]


def test_what_follows_the_end_of_turn_is_not_supervised(many_specials):
    tokens = tokenize_conversation(many_specials, SINGLE, chat_template=ENDS_TWICE)
    assert decode(many_specials, tokens["input_ids"]).endswith("<|im_end|>\n</s>")
    assert supervised_texts(many_specials, tokens) == ["It is 4.<|im_end|>"]


def test_a_missing_template_is_refused_with_both_remedies(metaspace_tokenizer):
    with pytest.raises(UserError, match=r"^chat_template: the tokenizer has no chat template.*format: plain"):
        tokenize_conversation(metaspace_tokenizer, SINGLE)


PARTS = [
    *("{{ m.content }}", "{{ m.role }}", "<|im_start|>", "<|im_end|>", "\n", "x", "{{ m.content | upper }}"),
    *("{{ m.content[1:] }}", "{{ messages[0].content }}", "{% if loop.last %}!{% endif %}", "{{ loop.index }}"),
    *("{{ 1 // (loop.index - 2) }}", "{{ nothing.at.all }}", "{{ raise_exception('no') }}"),
    *("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}", "{% if m.role == 'user' %}", "{% endif %}"),
]
parts = st.lists(st.sampled_from(PARTS[:9]), max_size=3).map("".join)
wild_templates = st.one_of(
    st.builds(
        lambda before, user, assistant, after, asking: (
            f"{before}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}"
            f"{{% endif %}}{after}{{% endfor %}}{{% if add_generation_prompt %}}{asking}{{% endif %}}"
        ),
        st.sampled_from(["", "<s>", "{{ messages[-1].content }}"]),
        *(parts.map(lambda text: "{{ m.content }}" + text), parts.map(lambda text: text + "{{ m.content }}<|im_end|>")),
        *(parts, st.sampled_from(["", "<|im_start|>", "x"])),
    ),
    st.lists(st.sampled_from([*PARTS, "{% for m in messages %}", "{% endfor %}"]), max_size=7).map("".join),
)
wild_texts = st.lists(
    st.sampled_from(["a", "<|im_end|>", "<|im_start|>", " ", "\n", "é", "<think>", "</think>"]), max_size=3
)


@settings(max_examples=400, deadline=None)
@given(
    wild_templates,
    st.lists(wild_texts.map(lambda words: "b" + "".join(words)), min_size=2, max_size=4),
    st.sampled_from(["all", "first", "last"]),
    st.sampled_from(["learn", "mask"]),
)
def test_an_arbitrary_template_gives_the_tokens_of_its_text_or_is_refused(
    byte_tokenizer, template, contents, turns, reasoning
):
    contents = contents[: len(contents) // 2 * 2]
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)
    ]
    try:
        tokens = tokenize_conversation(
            byte_tokenizer, messages, chat_template=template, turns=turns, reasoning=reasoning
        )
    except UserError:
        return
    text, prompt = decode(byte_tokenizer, tokens["input_ids"]), ask(byte_tokenizer, messages[:-1], template)
    assert text.startswith(prompt) or text == render(byte_tokenizer, messages, template)
    spans = supervised_texts(byte_tokenizer, tokens)
    assert all(text.endswith(("<|im_end|>", "<|im_start|>")) for text in spans) or reasoning == "mask"
    wanted = {"all": messages[1::2], "first": messages[1:2], "last": messages[-1:]}[turns]
    for message in wanted:
        assert any(message["content"].rpartition("</think>")[2].strip() in text for text in spans)
