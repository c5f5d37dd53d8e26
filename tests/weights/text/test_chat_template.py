"""Messages to prompt text, in a sandbox."""

from datetime import datetime

import pytest

from weights import ChatTemplate, TemplateError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def render(source, messages=HELLO, **options):
    template_options = {
        key: options.pop(key)
        for key in ("special_tokens", "max_characters", "now")
        if key in options
    }
    options.setdefault("add_generation_prompt", False)
    return ChatTemplate(source, **template_options).render(messages, **options)


def test_messages_become_a_prompt():
    assert render(CHATML, add_generation_prompt=True) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_leave_no_blank_space():
    assert render("{% if true %}\n    {% if true %}\nx\n    {% endif %}\n{% endif %}\n") == "x\n"


def test_special_tokens_tools_and_options_reach_the_template():
    source = "{{ bos_token }}{{ tools | tojson }}{{ enable_thinking }}"
    text = render(
        source, special_tokens={"bos_token": "<s>"}, tools=[{"a": "<é>"}], enable_thinking=False
    )
    assert text == '<s>[{"a": "<é>"}]False'


def test_json_can_be_indented():
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'


def test_the_date_is_the_clock_given():
    now = lambda: datetime(2026, 7, 31)  # noqa: E731
    assert render("{{ strftime_now('%d %B %Y') }}", now=now) == "31 July 2026"


def test_training_marks_are_let_through():
    assert render("{% generation %}{{ 'a' }}{% endgeneration %}b") == "ab"


def test_loops_can_be_left():
    assert (
        render("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}")
        == "1"
    )


def test_a_template_can_refuse():
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{% for i in range(100000000) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_fails_in_a_template_is_one_typed_error(source):
    with pytest.raises(TemplateError, match="refused the messages"):
        render(source)


def test_a_broken_template_is_refused_at_once():
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate("{% for %}")


def test_output_is_bounded():
    with pytest.raises(TemplateError, match="more than 1000 characters"):
        render("{% for i in range(1000) %}xxxxxxxxxx{% endfor %}", max_characters=1000)
