"""Template options reach the template wherever it is rendered, and become the exported template's defaults."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Rows, tokenize_conversation, tokenize_prompt
from lit_probsft.data.rows.formats import Columns
from lit_probsft.data.tokens.rendering import Renderer
from lit_probsft.data.tokens.template_defaults import with_defaults
from lit_probsft.errors import UserError
from tests.data.tokens.turn_shapes import CLOSES_BLOCKS, KEEPS_BLOCKS, SPECIAL_TOKENS

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' and style is defined %}"
    "{{- '[' + style + ']' }}{%- endif %}{{- m.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if style is defined %}{{- '[' + style + ']' }}{%- endif %}{%- endif %}"
)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_training_and_prompt_render_with_the_options(byte_tokenizer):
    options = {"chat_template": THINKING, "template_options": {"style": "x"}}
    tokens = tokenize_conversation(byte_tokenizer, MESSAGES, **options)
    assert decode(byte_tokenizer, tokens["input_ids"]).endswith("assistant\n[x]a<|im_end|>\n")
    assert decode(byte_tokenizer, [label for label in tokens["labels"] if label != -100]) == "a<|im_end|>"
    assert decode(byte_tokenizer, tokenize_prompt(byte_tokenizer, MESSAGES, **options)).endswith("assistant\n[x]")
    with pytest.raises(UserError, match="^template_options: plain text has no chat template"):
        tokenize_conversation(byte_tokenizer, MESSAGES, plain_text=True, template_options={"style": "x"})


def test_reasoning_that_the_options_turn_off_is_refused_with_a_way_out(byte_tokenizer):
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
    )
    reasoned = [MESSAGES[0], {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}]
    options = {"chat_template": template, "template_options": {"enable_thinking": False}}
    with pytest.raises(UserError, match=r"asks for no reasoning, which the answer has: remove it \(`reasoning: drop`"):
        tokenize_conversation(byte_tokenizer, reasoned, **options)


def test_a_row_decides_before_the_data_set_and_the_exported_template_knows_the_default(jsonl, tmp_path):
    rows = [{"prompt": "q", "response": "a", "chat_template_kwargs": own} for own in (None, {"style": "y", "b": None})]
    rows.append({**rows[0], "chat_template_kwargs": json.dumps({"style": "z"})})
    path, cache = jsonl(rows), str(tmp_path / "cache")
    data = InstructionDataModule(
        path,
        predict=path,
        tokenizer=ByteTokenizer(),
        chat_template=THINKING,
        template_options={"style": "x"},
        cache_dir=cache,
    )
    for split, end in (("train", "a<|im_end|>\n"), ("predict", "")):
        documents = data.documents(split)
        texts = {decode(data.tokenizer, documents[index][0]).rpartition("assistant\n")[2] for index in range(3)}
        assert texts == {f"[{style}]{end}" for style in "xyz"}
    assert data.end_of_turn_id == 258
    data.tokenizer.save_pretrained(tmp_path / "hf")
    alone = InstructionDataModule(path, tokenizer=str(tmp_path / "hf"), cache_dir=cache).tokenizer
    assert alone.apply_chat_template(MESSAGES, tokenize=False).endswith("[x]a<|im_end|>\n")
    assert alone.apply_chat_template(MESSAGES, tokenize=False, style="w").endswith("[w]a<|im_end|>\n")


def test_fit_says_if_prompts_for_unknown_answers_differ_from_those_in_training(jsonl, tmp_path, caplog):
    plain = {"prompt": "q", "response": "a"}
    reasons = {"prompt": "q", "response": "<think>\nb\n</think>\na"}
    said = []
    for template, rows, options in (
        (KEEPS_BLOCKS, [plain, plain], {}),
        (KEEPS_BLOCKS, [plain, reasons], {}),
        (KEEPS_BLOCKS, [plain, reasons], {"reasoning": "drop"}),
        (CLOSES_BLOCKS, [reasons, reasons], {}),
        (CLOSES_BLOCKS, [plain, plain], {}),
        (KEEPS_BLOCKS, [plain, plain], {"template_options": {"enable_thinking": False}}),
        (KEEPS_BLOCKS, [{"text": "a"}], {"train_text": True}),
    ):
        caplog.clear()
        source = Rows(jsonl(rows), text="text") if options.pop("train_text", False) else jsonl(rows)
        options |= {"chat_template": template, "add_special_tokens": SPECIAL_TOKENS, "cache_dir": str(tmp_path)}
        with caplog.at_level("INFO"):
            InstructionDataModule(source, tokenizer=ByteTokenizer(), **options).setup("fit")
        said.append(re.findall(r"(\w+) row has reasoning, so all are prompted with `(.*?)`", caplog.text))
    off, on = [("no", "enable_thinking: false")], [("every", "enable_thinking: true")]
    assert said == [off, [], off, on, [], [], []]


def test_a_tokenizer_of_the_caller_keeps_its_template(byte_tokenizer, jsonl, monkeypatch):
    monkeypatch.setattr(byte_tokenizer, "chat_template", THINKING)
    path = jsonl([{"prompt": "q", "response": "a"}])
    data = InstructionDataModule(path, tokenizer=byte_tokenizer, template_options={"style": "x"})
    assert "[x]" in data.tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert byte_tokenizer.chat_template == THINKING
    with pytest.raises(UserError, match=r"^data.template_options: .* 'stile'. Did you mean 'style'\?"):
        InstructionDataModule(path, tokenizer=byte_tokenizer, template_options={"stile": "x"}).tokenizer  # noqa: B018


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=15, deadline=None)
@given(plain, st.sampled_from(["", "\n", " \n"]), st.booleans())
def test_a_template_with_defaults_renders_as_with_the_options(byte_tokenizer, value, lead, in_macro):
    read = "{% macro show() %}{{ x | tojson }}{% endmacro %}{{ show() }}" if in_macro else "{{ x | tojson }}"
    template = lead + read
    expected = Renderer(byte_tokenizer, template, options={"x": value})(MESSAGES)
    defaults = with_defaults(template, {"x": value})
    assert Renderer(byte_tokenizer, defaults)(MESSAGES) == expected
    other = Renderer(byte_tokenizer, template, options={"x": "other"})(MESSAGES)
    assert Renderer(byte_tokenizer, defaults, options={"x": "other"})(MESSAGES) == other
    assert with_defaults({"default": template}, {"x": value}) == {"default": defaults}


def test_a_rows_options_are_a_mapping_or_its_json_text_without_nulls():
    row = {"prompt": "q", "response": "a"}
    for given_options, expected in (
        ({"a": False, "b": None, "c": {"d": None, "e": 1}}, {"a": False, "c": {"e": 1}}),
        ('{"a": [1, "b"]}', {"a": [1, "b"]}),
        ("", {}),
        ("null", {}),
        (None, {}),
    ):
        assert Columns().example({**row, "chat_template_kwargs": given_options}).template_options == expected
    for wrong in ("{", "3", [1], {"a b": 1}, {"eos_token": "x"}, {"a": {1}}):
        with pytest.raises(UserError, match="^chat_template_kwargs"):
            Columns().example({**row, "chat_template_kwargs": wrong})
