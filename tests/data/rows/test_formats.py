import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Rows
from lit_probsft.data.batches.row_tokenizer import Recipe, RowTokenizer
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.data.rows.formats import Columns, Conversation, Text, Tokens
from lit_probsft.data.rows.mixture import Mixture
from lit_probsft.data.rows.splits import Item, LoadedSource
from lit_probsft.data.rows.tool_calls import validate_tools
from lit_probsft.errors import UserError
from tests.data.chat_templates import CHATML

USER, ASSISTANT = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Rain."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
WITH_TOOLS = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "wet", "name": "weather"},
    ASSISTANT,
]
SHAREGPT = [{"from": "human", "value": "Weather?"}, {"from": "gpt", "value": "Rain."}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Weather?", "response": "Rain.", "text": "x"}, Conversation([USER, ASSISTANT])),
        ({"messages": [USER, ASSISTANT], "prompt": "x", "response": "y"}, Conversation([USER, ASSISTANT])),
        ({"conversations": SHAREGPT, "id": 3}, Conversation([USER, ASSISTANT])),
        ({"messages": SHAREGPT}, Conversation([USER, ASSISTANT])),
        ({"instruction": "Weather?", "input": "", "output": "Rain."}, Conversation([USER, ASSISTANT])),
        ({"instruction": "Weather?", "output": "Rain."}, Conversation([USER, ASSISTANT])),
        (
            {"instruction": "Say it.", "input": "Rain", "output": "Rain."},
            Conversation([{"role": "user", "content": "Say it.\n\nRain"}, ASSISTANT]),
        ),
        ({"text": "Once upon a time."}, Text("Once upon a time.")),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "text": "x"}, Tokens([5, 6, 7], [-100, 6, 7])),
        ({"messages": WITH_TOOLS, "tools": TOOLS}, Conversation(WITH_TOOLS, TOOLS)),
        ({"messages": WITH_TOOLS, "tools": json.dumps(TOOLS)}, Conversation(WITH_TOOLS, TOOLS)),
        ({"messages": [USER, ASSISTANT], "tools": ""}, Conversation([USER, ASSISTANT])),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_format_is_recognized_by_its_columns(row, expected):
    assert Columns().example(row) == expected


def test_a_named_format_or_column_overrides_recognition():
    row = {"messages": [USER, ASSISTANT], "conversations": SHAREGPT[:1], "text": "a", "instruction": "i", "output": "o"}
    assert Columns(text="text").example(row) == Columns(format="text").example(row) == Text("a")
    assert Columns(format="alpaca").example(row).messages[1]["content"] == "o"
    assert Columns(prompt="{text}?", response="output").example(row).messages[0]["content"] == "a?"
    assert Columns(format="sharegpt", messages="messages").example(row) == Conversation([USER, ASSISTANT])
    with pytest.raises(UserError, match="^messages: expected the last turn to be the assistant's"):
        Columns(format="sharegpt").example(row)


def test_other_role_vocabularies_give_the_same_turns():
    arguments = json.dumps({"town": "Ulm"})
    openai = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
        },
        {"role": "tool", "content": "wet", "tool_call_id": "c1", "name": None},
        ASSISTANT,
    ]
    expected = [
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
        {"role": "tool", "content": "wet", "tool_call_id": "c1"},
        ASSISTANT,
    ]
    assert validate_conversation(openai) == expected
    sharegpt = [
        {"from": "system", "value": "Be kind."},
        SHAREGPT[0],
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"town": "Ulm"}})},
        {"from": "observation", "value": "wet"},
        SHAREGPT[1],
    ]
    assert validate_conversation(sharegpt) == [
        *expected[:2],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "wet"},
        ASSISTANT,
    ]


def test_openais_older_calls_and_functions_equal_the_newer_ones():
    function = CALL["function"]
    older = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": None, "function_call": function},
        {"role": "function", "content": "wet", "name": "weather", "function_call": None},
        {**ASSISTANT, "function_call": {}},
    ]
    row = {"messages": older, "functions": [TOOLS[0]["function"]], "tools": None}
    assert Columns().example(row) == Conversation(WITH_TOOLS, TOOLS)
    for form in (json.dumps(function), {**function, "arguments": json.dumps(function["arguments"])}):
        older[1] = {"role": "assistant", "content": "", "function_call": form}
        assert Columns().example({**row, "functions": json.dumps(row["functions"])}) == Conversation(WITH_TOOLS, TOOLS)
    older[1] = {"role": "assistant", "content": "Look.", "function_call": function}
    assert Columns().example({"messages": older}).messages[1] == {**WITH_TOOLS[1], "content": "Look."}


def test_further_keys_of_a_turn_that_hold_a_value_are_kept_for_the_template():
    empty = {"audio": None, "name": "", "tags": [], "meta": {}, "weight": None}
    turns = [{**USER, **empty, "name": "Ann", "turn": 0}, {**ASSISTANT, **empty, "audio": {"id": "x"}, "ok": False}]
    assert validate_conversation(turns) == [
        {**USER, "name": "Ann", "turn": 0},
        {**ASSISTANT, "audio": {"id": "x"}, "ok": False},
    ]


def test_a_turn_may_be_left_unsupervised_and_may_carry_reasoning():
    turns = [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "train": True, "thinking": "Clouds."}]
    assert validate_conversation(turns) == [
        USER,
        {**ASSISTANT, "train": False},
        USER,
        {**ASSISTANT, "reasoning_content": "Clouds."},
    ]
    assert validate_conversation([{**USER, "train": False}, {**ASSISTANT, "weight": 1, "train": None}]) == [
        USER,
        ASSISTANT,
    ]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [USER, {**ASSISTANT, "train": False}],
            "^messages: expected an assistant turn to supervise, all have `train: false`",
        ),
        (
            [{**USER, "train": True}, ASSISTANT],
            r"^messages\[0\].train: expected none, since a user turn is never supervised",
        ),
        ([USER, {**ASSISTANT, "train": "no"}], r"^messages\[1\].train: expected true or false, got 'no'"),
        ([USER, {**ASSISTANT, "weight": 0.5}], r"^messages\[1\].weight: expected 0 \(not supervised\) or 1, got 0.5"),
        ([*WITH_TOOLS[:2], USER, ASSISTANT], "expected tool after assistant with tool calls, got user"),
        ([USER, ASSISTANT, WITH_TOOLS[2], ASSISTANT], "expected user after assistant, got tool"),
        (
            [USER, {"role": "assistant", "content": None}],
            r"^messages\[1\]: expected non-empty text, got null",
        ),
        (
            [{**USER, "tool_calls": [CALL]}, ASSISTANT],
            r"^messages\[0\].tool_calls: expected none in a user turn, got \[",
        ),
        ([USER, WITH_TOOLS[1], {**USER, "role": "function", "function_call": "f"}], "expected none in a tool turn"),
        (
            [USER, {**WITH_TOOLS[1], "function_call": CALL["function"]}],
            r"^messages\[1\].function_call: expected none in a turn with tool_calls",
        ),
        ([USER, {**ASSISTANT, "function_call": "f(x)"}], r"^messages\[1\].function_call: expected a mapping with name"),
        ([USER, {**ASSISTANT, "function_call": {"arguments": "{}"}}], "function_call: expected a mapping with name"),
        ([USER, {**ASSISTANT, "tool_calls": "x"}], r"^messages\[1\].tool_calls: expected a list, got 'x'"),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"x": 1}]}],
            r"tool_calls\[0\]: expected a mapping with name and arguments",
        ),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "{"}]}],
            r"^messages\[1\].tool_calls\[0\].arguments: expected a mapping, or its JSON text, got '\{'",
        ),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": [1]}]}],
            r"arguments: expected a mapping, or its JSON text, got \[1\]",
        ),
        ([SHAREGPT[0], {"from": "function_call", "value": "f(x)"}], r"^messages\[1\]: expected a call, as JSON text"),
        ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], r"^messages\[0\]: expected non-empty text"),
        ([{"role": "user", "content": "\ud800"}, ASSISTANT], r"^messages\[0\]: expected Unicode text.*U\+D800"),
    ],
)
def test_invalid_turns_are_refused_and_their_index_named(turns, message):
    with pytest.raises(UserError, match=message):
        validate_conversation(turns)


@pytest.mark.parametrize("value", ["{", 3, ["x"], {"name": "f"}, '{"name": "f"}', [{}]])
def test_tools_other_than_a_list_of_schemas_are_refused(value):
    with pytest.raises(UserError, match="^tools: expected a list of tools"):
        validate_tools(value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, "^labels: expected 2, one for each of input_ids, got 1"),
        (
            {"input_ids": [1, 2], "labels": [-100, 3]},
            r"^labels: expected the id itself \(2\), or -100 .* got 3 at position 1",
        ),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "^labels: the mask supervises nothing: all of 2 labels after"),
        ({"input_ids": "ab", "labels": [1, 2]}, "^input_ids: expected a non-empty list of integers, got 'ab'"),
        ({"input_ids": [1, True], "labels": [1, 2]}, "^input_ids: expected a non-empty list of integers"),
        ({"input_ids": [], "labels": []}, "^input_ids: expected a non-empty list of integers"),
        (
            {"input_ids": [-1, 2], "labels": [-1, 2]},
            r"^input_ids: expected ids from 0 to 2\*\*31 - 1, got -1 at position 0",
        ),
        ({"input_ids": [1, 2]}, "^prompt: expected the columns of a known format: `messages`"),
        ({"text": 3}, "^text: column 'text': expected non-empty text, got 3"),
        ({"instruction": "i", "output": ""}, "^output: expected non-empty text"),
        ({"instruction": "i", "input": 3, "output": "o"}, "^input: expected non-empty text"),
        ({"conversations": []}, "^messages: expected a non-empty list"),
    ],
)
def test_a_bad_row_of_any_format_is_refused_and_the_field_named(row, message):
    with pytest.raises(UserError, match=message):
        Columns().example(row)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": "m", "text": "t"}, "^text: expected either `messages`, or .*got messages and text"),
        ({"format": "text", "messages": "m"}, "^messages: expected none with `format: text`, got 'm'"),
        ({"format": "alpaca", "prompt": "p", "response": "r"}, "^prompt: expected none with `format: alpaca`"),
    ],
)
def test_contradictory_columns_are_refused_before_any_row_is_read(columns, message):
    with pytest.raises(UserError, match=message):
        Columns(**columns)
    with pytest.raises(UserError, match=message):
        Rows("nowhere.jsonl", **columns).load()


def test_an_unknown_format_or_one_without_its_columns_is_refused(jsonl):
    with pytest.raises(
        UserError, match="^format: expected one of messages, .* got 'sharegtp'. Did you mean 'sharegpt'"
    ):
        Rows("x", format="sharegtp")
    path = jsonl([{"text": "a"}])
    with pytest.raises(UserError, match="^format: no column 'instruction' among 'text'"):
        Rows(path, format="alpaca").load()
    with pytest.raises(UserError, match="^text: no column 'txt' among 'text'. Did you mean 'text'"):
        Rows(path, text="txt").load()
    with pytest.raises(UserError, match="^format: expected rows with turns, got text"):
        Rows(path).conversation({"text": "a"})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "arguments", "train", "type"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
names = [
    "messages",
    "conversations",
    "prompt",
    "response",
    "instruction",
    "input",
    "output",
    "text",
    "input_ids",
    "labels",
]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*names, "tools"]), values, max_size=4))
def test_an_arbitrary_row_becomes_an_example_or_is_refused(row):
    try:
        example = Columns().example(row)
    except UserError:
        return
    assert isinstance(example, Conversation | Text | Tokens)
    if isinstance(example, Conversation):
        assert example.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize("depth", [50, 600])
@pytest.mark.parametrize(
    "change", [{"messages": ...}, {"tools": [{"a": ...}]}, {"chat_template_kwargs": {"a": ...}}, {"unused": ...}]
)
def test_a_row_may_be_nested_more_deeply_than_python_can_follow(change, depth, many_specials):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    text = json.dumps({"messages": turns, **change}, default=lambda _: "HERE")
    row = json.loads(text.replace('"HERE"', '{"a": ' * depth + "1" + "}" * depth))
    recipe = Recipe(chat_template="{{ tools | tojson }}" + CHATML)
    row_tokenizer = RowTokenizer(LoadedSource(Rows("rows.jsonl"), "train"), many_specials, recipe)
    if "unused" in change or (depth == 50 and "messages" not in change):
        assert row_tokenizer.tokenize_item(Item(row, 0, 3), 3)[0].document is not None
    else:
        with pytest.raises(UserError, match=r"\(row 3 of data.train, counted from 0\)"):
            row_tokenizer.tokenize_item(Item(row, 0, 3), 3)


# Rows of any format through the data module.


def documents(tmp_path, source, **options):
    module = InstructionDataModule(source, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path / "cache"), **options)
    module.setup("fit")
    store = module.documents("train")
    decode = module.tokenizer.decode
    return [(decode(ids), decode(labels[labels != -100])) for ids, labels in map(store.__getitem__, range(len(store)))]


def test_a_text_is_supervised_whole_and_ends_once(tmp_path, jsonl):
    path = jsonl([{"text": "Once."}, {"text": "Twice.<|im_end|>"}])
    assert documents(tmp_path, path) == [("Once.<|im_end|>",) * 2, ("Twice.<|im_end|>",) * 2]
    with pytest.raises(UserError, match=r"^data.predict: expected rows with turns to answer, got text \(row 0"):
        module = InstructionDataModule(test=path, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path / "cache"))
        module.setup("predict")


def test_the_beginning_of_text_token_is_not_supervised(many_specials):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    from lit_probsft.data.tokens.tokenization import tokenize_text

    tokenizer = deepcopy(many_specials)
    tokenizer.bos_token = "<s>"
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    for text in ("ab", "<s>ab"):
        assert tokenize_text(tokenizer, text) == {"input_ids": [begin, 97, 98, end], "labels": [-100, 97, 98, end]}
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="^text: a text ends with the tokenizer's eos token"):
        tokenize_text(tokenizer, "ab")


def test_rows_of_token_ids_are_kept_unchanged(tmp_path, jsonl):
    ids = [*b"What? That.", 258]
    labels = [-100] * 6 + ids[6:]
    assert documents(tmp_path, jsonl([{"input_ids": ids, "labels": labels}])) == [
        ("What? That.<|im_end|>", "That.<|im_end|>")
    ]


def test_files_of_different_formats_can_be_combined(tmp_path, jsonl):
    paths = [
        jsonl([{"conversations": SHAREGPT}], "a.jsonl"),
        jsonl([{"instruction": "Weather?", "output": "Rain."}], "b.jsonl"),
        jsonl([{"text": "Rain."}], "c.jsonl"),
    ]
    texts = [text for _, text in documents(tmp_path, Rows(paths))]
    assert texts == ["Rain.<|im_end|>"] * 3


FUNCTIONS = """
from lit_probsft import UserError


def questions(row):
    return {"prompt": "\\n".join(row["CONTEXTS"]) + "\\n" + row["QUESTION"], "response": row["final_decision"]}


def with_key(row):
    return {"prompt": row["key"], "response": "x"}


def nothing(row):
    return None
"""


def test_a_row_function_converts_any_other_format(tmp_path, monkeypatch):
    """Such as PubMedQA, a dictionary of rows by key."""
    (tmp_path / "rows_of_test_formats.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    content = {str(i): {"QUESTION": f"{i}?", "CONTEXTS": ["a", "b"], "final_decision": "yes"} for i in range(2)}
    path = tmp_path / "nested.json"
    path.write_text(json.dumps(content, indent=1))
    source = Rows(str(path), row_function="rows_of_test_formats.questions")
    assert [text for _, text in documents(tmp_path, source)] == ["yes<|im_end|>"] * 2
    assert source.conversation(source.load()[1])[0]["content"] == "a\nb\n1?"
    keyed = Rows(str(path), row_function="rows_of_test_formats.with_key")
    assert [text[17:18] for text, _ in documents(tmp_path, keyed)] == ["0", "1"]
    assert keyed.fingerprint() != source.fingerprint()
    for name, message in (
        ("nothing", "^row_function: expected .*nothing to return a mapping .* got NoneType"),
        ("question", "^row_function: no function 'question' in .*Did you mean 'questions'"),
    ):
        with pytest.raises(UserError, match=message):
            broken = Rows(str(path), row_function=f"rows_of_test_formats.{name}")
            broken.example(broken.load()[0])
    with pytest.raises(
        UserError, match=r"^data.train.row_function: .*questions raised KeyError: 'CONTEXTS' \(row 0 of"
    ):
        path.write_text('[{"a": 1}]')
        documents(tmp_path, source)
    for name, message in (("questions", "expected an import path"), ("no.where", "cannot import 'no'")):
        with pytest.raises(UserError, match=f"^row_function: {message}"):
            Rows(str(path), row_function=name).load()


def test_the_cache_depends_on_what_a_row_function_returns_not_on_its_name(tmp_path, monkeypatch, jsonl):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    file, path = tmp_path / "changing_of_test_formats.py", jsonl([{"a": "x"}])
    seen = []
    for answer in ("one", "another"):
        file.write_text(f"def make(row):\n    return {{'prompt': row['a'], 'response': {answer!r}}}\n")
        importlib.invalidate_caches()
        importlib.reload(importlib.import_module("changing_of_test_formats"))
        seen += documents(tmp_path, Rows(path, row_function="changing_of_test_formats.make"))
    assert [text for _, text in seen] == ["one<|im_end|>", "another<|im_end|>"]


def test_a_prediction_of_a_conversation_with_tools_has_its_question_and_answer(tmp_path, jsonl):
    path = jsonl([{"messages": WITH_TOOLS}, {"messages": WITH_TOOLS[:2]}])
    module = InstructionDataModule(
        test=path, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path), chat_template=TOOLS_TEMPLATE
    )
    module.setup("predict")
    assert [module.prediction_row(i)["prompt"] for i in range(2)] == ["Weather?"] * 2
    assert module.prediction_row(0)["reference"] == "Rain."
    assert json.loads(module.prediction_row(1)["reference"]) == CALL["function"]


SYSTEM, ANSWER = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}
QUESTIONS = {
    "messages": ({"messages": [SYSTEM, USER]}, {"messages": [SYSTEM, USER, ANSWER]}, {}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {},
    ),
    "prompt": ({"prompt": "q"}, {"prompt": "q", "response": "a"}, {}),
    "a null answer": ({"prompt": "q", "response": None}, {"prompt": "q", "response": "a"}, {}),
    "a template": ({"x": "q"}, {"x": "q", "y": "a"}, {"prompt": "{x}?", "response": "{y}"}),
    "an empty column": ({"x": "q", "y": ""}, {"x": "q", "y": "a"}, {"prompt": "x", "response": "y"}),
    "alpaca": ({"instruction": "q", "input": "i"}, {"instruction": "q", "input": "i", "output": "a"}, {}),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "in a mixture"])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_question_has_the_same_prompt_with_and_without_an_answer(kind, mixed, tmp_path, jsonl):
    question, answered, columns = QUESTIONS[kind]
    without_answer = columns if kind != "a template" else {"prompt": "{x}?"}
    sources = Rows(jsonl([question], "q.jsonl"), **without_answer), Rows(jsonl([answered], "a.jsonl"), **columns)
    alone, whole = (
        InstructionDataModule(
            predict=Mixture({"one": source}) if mixed else source, tokenizer=ByteTokenizer(), cache_dir=str(tmp_path)
        )
        for source in sources
    )
    for module in (alone, whole):
        module.setup("predict")
    assert alone.documents("predict")[0][0].tolist() == whole.documents("predict")[0][0].tolist()
    assert alone.prediction_row(0) == {**whole.prediction_row(0), "reference": None}
    assert whole.prediction_row(0)["reference"] == "a"


@pytest.mark.parametrize("kind", QUESTIONS)
def test_other_splits_refuse_a_question_without_an_answer(kind, tmp_path, jsonl):
    question, _, columns = QUESTIONS[kind]
    module = InstructionDataModule(
        test=Rows(jsonl([question]), **columns), tokenizer=ByteTokenizer(), cache_dir=str(tmp_path)
    )
    for stage in ("test", "predict"):  # predict uses the rows of `test` by default
        with pytest.raises(UserError, match=r"^data\.test\."):
            module.setup(stage)


def test_a_named_response_column_must_exist_even_for_prediction(tmp_path, jsonl):
    module = InstructionDataModule(
        predict=Rows(jsonl([{"x": "q"}]), prompt="x", response="anser"), tokenizer=ByteTokenizer()
    )
    with pytest.raises(UserError, match=r"^data\.predict\.response: no column 'anser' among 'x'"):
        module.setup("predict")


TOOLS_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
