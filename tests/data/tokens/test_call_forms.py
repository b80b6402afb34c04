"""Templates get the arguments of calls in the form that they write."""

import json

import pytest

from lit_probsft.data import ByteTokenizer
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.data.tokens.rendering import Renderer
from lit_probsft.data.tokens.tokenization import tokenize_conversation
from lit_probsft.errors import UserError

TEMPLATE = (
    "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\n' }}}}{{{{ m.content or '' }}}}"
    "{{% for c in m.tool_calls or [] %}}{{{{ c.function.name }}}}:{body}{{% endfor %}}"
    "{{{{ '<|im_end|>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)
AS_JSON = {
    "tojson": "{{ c.function.arguments | tojson }}",
    "tojson of the whole": "{{ c.function | tojson }}",
    "joined": "{{ '[' + c.function.arguments + ']' }}",
    "joined by ~": "{{ '[' ~ c.function['arguments'] ~ ']' }}",
    "printed": "{% set a = c.function.arguments %}{{ a }}",
    "text or not": "{% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}",
    "text only": "{% if c.function.arguments is string %}{{ c.function.arguments }}{% endif %}",
    "null content only": "{% if m.content is none %}{{ '[' + c.function.arguments + ']' }}{% endif %}",
}
AS_MAPPING = {
    "items": "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }};{% endfor %}",
    "the filter items": "{% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }};{% endfor %}",
    "mapping only": "{% if c.function.arguments is not mapping %}{{ raise_exception('no') }}{% endif %}"
    "{{ c.function.arguments | tojson }}",
}
ARGUMENTS = {"town": 'Ülm "A"', "deep": {"on": [True, None]}}


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer().load(list)


def conversation(arguments):
    call = {"id": "x", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return validate_conversation(
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ]
    )


def written(text):
    return text.split("weather:")[1].split("<|im_end|>")[0]


@pytest.mark.parametrize("body", [*AS_JSON, *AS_MAPPING])
def test_arguments_as_text_and_as_a_mapping_give_the_same_text(body, tokenizer):
    template = TEMPLATE.format(body={**AS_JSON, **AS_MAPPING}[body])
    render = Renderer(tokenizer, template)
    for arguments, empty in ((ARGUMENTS, False), ({}, True)):  # the form is found by the first of them
        texts = ["", None, " "] if empty else []
        forms = [arguments, json.dumps(arguments), json.dumps(arguments, indent=1), *texts]
        (text,) = {render(conversation(form)) for form in forms}
        tokenized = tokenize_conversation(tokenizer, conversation(arguments), chat_template=template)
        assert tokenizer.decode(tokenized["input_ids"]) == text
        if body in AS_JSON:
            parsed = json.loads(written(text).strip("[]"))
            assert parsed.get("arguments", parsed) == arguments
        assert "'" not in text


def test_a_call_without_arguments_that_comes_first_decides_nothing(tokenizer):
    """An empty mapping looks the same in Python and in JSON."""
    render = Renderer(tokenizer, TEMPLATE.format(body="{{ c.function.arguments }}!"))
    assert written(render(conversation({}))) == "{}!"
    assert json.loads(written(render(conversation(ARGUMENTS)))[:-1]) == ARGUMENTS


def test_the_error_of_a_template_that_takes_no_form_is_its_own(tokenizer):
    render = Renderer(tokenizer, TEMPLATE.format(body="{{ raise_exception('no calls') }}"))
    with pytest.raises(UserError, match="^chat_template: .*no calls$"):
        render(conversation(ARGUMENTS))
