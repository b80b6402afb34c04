r"""Brings LaTeX, Markdown, plain text and Unicode into one LaTeX notation, so that equal answers often are equal texts.

`normalize` changes only how something is written: `\dfrac12` becomes `\frac{1}{2}`, `1.5e-3` becomes
`1.5\cdot 10^{-3}` and `pi/2` becomes `\pi /2`.
"""

from __future__ import annotations

import re
from typing import Any

_NAMED = (
    "×cdot ·cdot ⋅cdot ∗cdot ∞infty πpi √sqrt °degree ≤le ≥ge ≠ne ∪cup ∈in ±pm ∓mp …ldots ≈approx ∅emptyset ℝR "
    "αalpha βbeta γgamma δdelta θtheta λlambda μmu φphi ωomega σsigma"
)
_CHARACTERS = str.maketrans(
    {
        **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)},  # full-width forms
        **{c: f"^{{{n}}}" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{c: f"_{{{n}}}" for n, c in enumerate("₀₁₂₃₄₅₆₇₈₉")},
        **{name[0]: f"\\{name[1:]} " for name in re.findall(r"\S+", _NAMED)},
        **dict.fromkeys("−–—‐‑", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u3000\t\n\r", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\0€£¥", ""),
        **dict(zip("÷、。½⅓⅔¼¾", ("/", ",", ".", " 1/2", " 1/3", " 2/3", " 1/4", " 3/4"), strict=True)),
    }
)
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt"
    "|pi|theta|alpha|beta|gamma|delta|lambda|omega|infty"
)
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "times": "cdot", "ast": "cdot", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne",
    "lt": "<", "gt": ">",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "varnothing": "emptyset",
    "simeq": "approx", "doteq": "approx", "varepsilon": "epsilon", "varphi": "phi", "lvert": "|",
    "rvert": "|", "vert": "|", "langle": "(", "rangle": ")",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "lbrace": r"\{", "rbrace": r"\}", "degrees": "degree",
    "div": "/", "colon": ":", "infin": "infty", "lg": "log_{10}",
}  # fmt: skip
_PLAIN = {
    "**": "^", "*": r"\cdot ", "<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "<>": r"\ne ", "==": "=",
    "...": r"\ldots ",
}  # fmt: skip
_WRAPPERS = "mathbf|boldsymbol|bm|bf|mathit|mathcal|mathsf|mathtt|vec|hat|boxed|fbox|displaystyle|ensuremath|underline"
_TEXT = r"\\(?:text|textbf|textit|textrm|texttt|textnormal|mbox|mathrm|operatorname\*?|rm)\b\s*"
ROW = "\x02"
"""Separates the rows of a matrix."""
_FACTORS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_STEPS: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\$\s*([,;])\s*\$", r"\1 "),
        (r"\\?\$|(?<!\\)\\[\[\]()]", ""),
        # spaces and sizes
        (r"(?<=\d)(?:\{,\}\s*|,\s*(?:\\!\s*)+|(?:\\[,;:! ]|~)\s*)(?=\d{3}(?!\d))", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?!\d)", ""),
        (r"\\(?:[,;:>! ]|q?quad(?![A-Za-z])|displaystyle|textstyle|limits(?![A-Za-z]))|(?<!\\)~|\{\}", " "),
        # commands that mean the same
        (r"\\([A-Za-z]+)", lambda m: _same(m[1])),
        (r"\\(begin|end)\{[bpB]?matrix\}", r"\\\1{pmatrix}"),
        (r"\\%|(?<=\d)\s*(?:percent|per cent)\b|\s*" + _TEXT + r"\{\s*percent\s*\}", "%"),
        (
            r"\s*(?:\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|"
            + _TEXT
            + r"\{\s*degrees?\s*\}|\\degrees?(?![A-Za-z])|\bdegrees?\b)",
            r"\\degree ",
        ),
        (r"\^\s*\{?\s*((?:\\prime(?![A-Za-z])\s*)+)\}?", lambda m: "'" * m[1].count("prime")),
        (r"\\(?:" + _WRAPPERS + r")(?![A-Za-z])\s*\{([^{}]*)\}", r"\1"),
        # text: connectives, functions, single letters
        (_TEXT + r"\{(?:[^{}]*\s)?(or|and)\s*\}", r" \1 "),
        (_TEXT + r"\{\s*(" + _FUNCTIONS + r"|gcd|lcm|max|min)\s*\}", r"\\\1 "),
        (r"\\(?:mathrm|mathbf|rm|bf)\s+([A-Za-z])(?![A-Za-z])", r"\1"),
        (r"\\mathbb\s*\{?([A-Z])\}?|\\([RZNQC])(?![A-Za-z])", lambda m: f"\\{m[1] or m[2]} "),
        (r"(?<=[_^])\s*\{?\s*" + _TEXT + r"\{\s*([^{}]*?)\s*\}\s*\}?", r"{\1}"),
        (r"(?<=[\d}]) ?\\text\{\s*([msgNJKWVLh])\s*\}", r" \\text{\1.}"),  # a unit and no letter
        (_TEXT + r"\{\s*(\(?[A-Za-z]\)?|[\d\s.,()+/-]+)\s*\}", r"\1"),
        (_TEXT + r"\{\s*([^{}]*?)\s*\}", r"\\text{\1}"),
        (r"^ ?(?i:\\text\{[^{}]*(?: is| are|:)\}|(?:the )?(?:final )?answer(?: is|:)) ?", ""),
        # plain text
        (r"(?<![A-Za-z])(?:np|math|sympy|cmath)\.(?=[a-z])", ""),
        (r"\*\*(.+?)\*\*(?=\s*$)", r"\1"),
        (r"(?<![\\A-Za-z])(" + _FUNCTIONS + r")(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\*\*?|[<>]=|=[<=]|!=|<>|\.\.\.+", lambda m: _PLAIN[m[0][:3]]),
        # numbers
        (r"(?<![\w.,])(\d{1,3}(?: \d{3})+)(?![\w,])", lambda m: m[1].replace(" ", "")),
        (r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]\+?(-?\d+)(?![\w.])", r"\1\\cdot 10^{\2}"),
        (r"(?<![\w.])\.(?=\d)", "0."),
        (r"(?<=\d)\.(?!\d|\\overline)", ""),
        (
            r"(?<=\d) ?(?:\\text\{)?(" + "|".join(_FACTORS) + r")(?:\}|\b)",
            lambda m: rf"\cdot 10^{{{_FACTORS[m[1]]}}}",
        ),
        # arguments
        (r"(?<=[_^])\s*(-?\d+(?:\.\d+)?|-?[A-Za-z](?![A-Za-z]))", r"{\1}"),
    ]
]
_ARGUMENT = re.compile(r"\s*(?:(?P<brace>\{)|(?P<one>\\[A-Za-z]+|[^\s\\{}]))")


def normalize(text: str) -> str:
    """The same answer in one notation. Its time is linear in the length of the text, apart from nested braces."""
    text = text.translate(_CHARACTERS)
    if r"\begin" in text:
        text = re.sub(r"\\\\(?:\[[^\[\]]*\])?", ROW, text)
    text = re.sub(r"\\\\(?![A-Za-z])", " ", text).replace(r"\\", "\\")
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = _braced_parentheses(_braced_arguments(text))
    text = re.sub(r"\s+", " ", text).strip().strip(",;:").strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return re.sub(r"(?<!\\)[.。]+$", "", text).strip()


def _same(command: str) -> str:
    name = _SAME.get(command, command)
    return name if not name[0].isalpha() else "\\" + name


def _braced_arguments(text: str) -> str:
    r"""`\frac12`, `\frac{a}b` and `\sqrt2` with braces around every argument."""
    parts = []
    position = 0
    for command in re.finditer(r"\\(frac|binom|sqrt)(?![A-Za-z])(?:\s*(\[[^\[\]]*\]))?", text):
        if command.start() < position:
            continue
        parts.append(text[position : command.start()])
        position = command.end()
        arguments = []
        for _ in range(1 if command[1] == "sqrt" else 2):
            found = _ARGUMENT.match(text, position)
            if found is None or (command[1] == "sqrt" and found["one"] == "("):
                break
            end = closing(text, found.end() - 1) + 1 if found["brace"] else found.end()
            inner = text[found.end() : end - 1] if found["brace"] else found["one"]
            arguments.append("{" + _braced_arguments(inner).strip() + "}")
            position = end
        parts.append(f"\\{command[1]}{command[2] or ''}{''.join(arguments)}")
    return "".join(parts) + text[position:]


def _braced_parentheses(text: str) -> str:
    r"""`\sqrt(2)` and `x^(2)` with braces."""
    while found := re.search(r"(?:\\sqrt|\^)\s*\(", text):
        end = closing(text, found.end() - 1)
        text = f"{text[: found.end() - 1].rstrip()}{{{text[found.end() : end]}}}{text[end + 1 :]}"
    return text


def closing(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`, or of the end of the text."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return len(text)


def depth(text: str) -> int:
    """How deep brackets are nested."""
    now = deepest = 0
    for character in text:
        now += (character in "([{") - (character in ")]}")
        deepest = max(deepest, now)
    return deepest
