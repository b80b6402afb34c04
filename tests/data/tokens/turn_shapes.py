"""Chat templates in which a turn ends, or its prompt begins, in unusual ways. In our own words."""

_MARKED = "{% generation %}", "{% endgeneration %}"


def _template(before, answer, prompt, question="'<|user|>' + m.content", first=""):
    """A template of user and assistant turns.

    Args:
        before: what is between a question and an answer, Jinja statements.
        answer: the answer and its end, Jinja statements.
        prompt: the generation prompt, Jinja statements.
        question: expression.
        first: statements before the first turn.
    """
    return (
        f"{first}{{%- for m in messages %}}{{%- if m.role == 'assistant' %}}{before}{answer}"
        f"{{%- else %}}{{{{- {question} }}}}{{%- endif %}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{prompt}{{%- endif %}}"
    )


_HEADER = "{{- '<|assistant|>' }}"
_REASONING = (
    "{%- set thought = m.reasoning_content or '' %}{%- set said = m.content %}{%- if '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set said = said.split('</think>')[-1].strip() %}{%- endif %}"
)
_SWITCHED_ON = (
    _HEADER + "{{- '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\n' }}"
)
_SWITCHED_OFF = _HEADER + "{{- '<think>\n' if enable_thinking is defined and enable_thinking else '<think></think>' }}"
_WITH_BLOCK = (
    "{{- '<think>' + ('\n' + thought + '\n' if thought else '') + '</think>' if loop.last or not drops else '' }}"
    "{{- said + '<|end|>' }}"
)

TWO_ENDS = _template(_HEADER, "{{- m.content + '<|stop|><|end|>' }}", _HEADER)
TWO_ENDS_MARKED = _template(_HEADER, "{{- m.content + '<|stop|><|end|>\n' }}".join(_MARKED), _HEADER)
HEADER_MARKED = _template("", (_HEADER + "{{- m.content + '<|end|>\n' }}").join(_MARKED), _HEADER)
HALF_A_HEADER_MARKED = _template(
    "{{- '<|assistant|>' }}", "{{- '\n' + m.content + '<|end|>\n' }}".join(_MARKED), "{{- '<|assistant|>\n' }}"
)
NEXT_ROLE = _template(_HEADER, "{{- '\n' + m.content }}", _HEADER)
# Opens reasoning in the prompt; an option closes it at once. The second writes no block in earlier turns.
KEEPS_BLOCKS = _template(_HEADER, "{%- set drops = false %}" + _REASONING + _WITH_BLOCK, _SWITCHED_ON)
DROPS_BLOCKS = _template(_HEADER, "{%- set drops = true %}" + _REASONING + _WITH_BLOCK, _SWITCHED_ON)
CLOSES_BLOCKS = _template(_HEADER, "{%- set drops = true %}" + _REASONING + _WITH_BLOCK, _SWITCHED_OFF)
# Opens reasoning in the prompt, whatever the options, and never writes any.
NEVER_BLOCKS = _template(_HEADER, _REASONING + "{{- said + '<|end|>' }}", _HEADER + "{{- '<think>\n' }}")
# The same, but writes that the reasoning is over.
ONLY_CLOSES = _template(_HEADER, _REASONING + "{{- '</think>' + said + '<|end|>' }}", _HEADER + "{{- '<think>' }}")
# A turn has channels; it ends differently where it is the last, and reasoning is written only there.
CHANNELS = _template(
    "{%- set last = loop.last and not add_generation_prompt %}",
    "{{- '<|assistant|>self<|text|>' + m.thinking + '<|end|>' if last and m.thinking }}"
    "{{- '<|assistant|>user<|text|>' + m.content + ('<|stop|>' if last else '<|end|>') }}",
    _HEADER,
)
# Writes the number of turns first, so that nothing of a text is a prefix of a longer one.
COUNTS = _template(_HEADER, "{{- m.content + '<|end|>' }}", _HEADER, first="{{- messages | length }}")
PARTS = _template(_HEADER, "{{- m.content[0].text + '<|end|>' }}", _HEADER, question="'<|user|>' + m.content[0].text")
SYSTEM_IN_THE_LAST = (  # writes the system text only in a question that is the last message
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- endif %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<|user|>' }}"
    "{%- if loop.last and system is defined %}{{- system + ' ' }}{%- endif %}{{- m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<|assistant|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
LEAVES_OUT = _template(_HEADER, "{{- (m.content if loop.last else '...') + '<|end|>' }}", _HEADER)

SPECIAL_TOKENS = ["<|user|>", "<|assistant|>", "<|end|>", "<|stop|>", "<|text|>"]

# Name: template; options of the prompt for a plain answer; what is written before each answer, and before the last one;
# the end of each turn, and of the last one.
SHAPES = {
    "two ends": (TWO_ENDS, {}, "", "", "<|stop|><|end|>", "<|stop|><|end|>"),
    "two ends, marked": (TWO_ENDS_MARKED, {}, "", "", "<|stop|><|end|>", "<|stop|><|end|>"),
    "header marked": (HEADER_MARKED, {}, "", "", "<|end|>", "<|end|>"),
    "half a header marked": (HALF_A_HEADER_MARKED, {}, "", "", "<|end|>", "<|end|>"),
    "next role": (NEXT_ROLE, {}, "\n", "\n", "<|user|>", "<|user|>"),
    "keeps blocks": (KEEPS_BLOCKS, {"enable_thinking": False}, "", "", "<|end|>", "<|end|>"),
    "drops blocks": (DROPS_BLOCKS, {"enable_thinking": False}, "", "", "<|end|>", "<|end|>"),
    "closes blocks": (CLOSES_BLOCKS, {}, "", "", "<|end|>", "<|end|>"),
    "never blocks": (NEVER_BLOCKS, {}, "", "\n</think>\n\n", "<|end|>", "<|end|>"),
    "only closes": (ONLY_CLOSES, {}, "</think>", "</think>", "<|end|>", "<|end|>"),
    "channels": (CHANNELS, {}, "user<|text|>", "user<|text|>", "<|end|>", "<|stop|>"),
    "counts": (COUNTS, {}, "", "", "<|end|>", "<|end|>"),
    "parts": (PARTS, {}, "", "", "<|end|>", "<|end|>"),
}
