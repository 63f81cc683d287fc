"""Make chat.json: prompts by transformers' `apply_chat_template` for templates in the styles that models use.

python tests/models/golden_tokenizers/make_chat.py        (in the oracle environment)
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    # ChatML, with a default system message, as SmolLM2 and Qwen do it.
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Qwen3: tools, thinking, white space control, namespaces, slices and reversed loops.
    "qwen3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string \
and not(message.content.startswith('<tool>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' }}
        {%- endif %}
        {{- message.content.lstrip('\\n') + '<|im_end|>\\n' }}
    {%- elif message.role != "system" or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # Llama 3: BOS, headers, trimming, the date, and a loop that is left early.
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Gemma: no system role, alternation enforced, the assistant is called model.
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}""",
    # Mistral: [INST], the system message in the last instruction, EOS after each answer.
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of system!") }}
    {%- endif %}
{%- endfor %}
""",
    # Macros, recursion, filters, joins, generation blocks and what else the language offers.
    "workout": """{%- macro render(value, depth) -%}
{%- if value is mapping -%}{{ '{' }}{% for k, v in value|dictsort %}{{ k ~ ':' }}{{ render(v, depth + 1) }}\
{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is iterable and value is not string -%}[{{ value|map('string')|join(', ') }}]
{%- else -%}{{ value|string|upper }}{%- endif -%}
{%- endmacro -%}
{% set counts = namespace(users=0) %}{% for message in messages recursive %}
{% if message.role == 'user' %}{% set counts.users = counts.users + 1 %}{% endif %}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% else %}\
{{ message.role ~ ' ' ~ loop.index ~ '/' ~ loop.length ~ ': ' ~ message.content }}{% endif %}
{% if message.parts is defined %}{{ loop(message.parts) }}{% endif %}
{% else %}nobody
{% endfor %}{{ counts.users }} {{ render({'b': [1, 2], 'a': {'c': 'd\\u00e9'}}, 0) }}
{{ messages | map(attribute='role') | unique | list }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ '%s-%03d' % ('x', 7) }}
{{ 'ab' * 3 }} {{ range(3) | list }} {{ dict(a=1, b=[2]) | tojson }} {{ {'z': 'ü<>&'} | tojson(indent=2) }}
{{ messages[0].content.split(' ')[0].title() }} {{ [1, 2] + [3] }} {{ documents | length if documents else 'none' }}
{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a }}={{ b }};{% endfor %}{{ eos_token | default('no eos') }}""",
}

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": '  Hello <there> & "you"  '}],
    "turns": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi\n\n  there"},
        {"role": "assistant", "content": "\n\nHello! 👋🏽", "reasoning_content": "greet back"},
        {"role": "user", "content": "日本語? {{ not a template }}"},
    ],
    "thought": [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4", "thinking": "\neasy\n"},
    ],
    "odd": [
        {
            "role": "user",
            "content": "a",
            "parts": [{"role": "inner", "content": "b"}, {"role": "inner", "content": "c"}],
        },
        {"role": "skip", "content": "s"},
        {"role": "assistant", "content": "d"},
        {"role": "stop", "content": "e"},
        {"role": "user", "content": "f"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_é", "description": "<x> & 'y'", "parameters": {"a": [1, None, True]}},
    }
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def main() -> None:
    vocabulary = {token: index for index, token in enumerate(["<unk>", *SPECIAL.values()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    cases: list[dict[str, Any]] = []
    for style, template in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for extra in ({}, {"add_generation_prompt": True}, {"tools": TOOLS, "enable_thinking": False}):
                variables: dict[str, Any] = {"date_string": "26 Jul 2024", "add_generation_prompt": False, **extra}
                case = {"style": style, "chat": chat, "variables": variables}
                try:
                    options: dict[str, Any] = {"tokenize": False, "chat_template": template, **variables}
                    case["prompt"] = tokenizer.apply_chat_template(messages, **options)
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    data = {"templates": TEMPLATES, "chats": CHATS, "special": SPECIAL, "cases": cases}
    path = Path(__file__).parent / "chat.json"
    path.write_text(json.dumps(data, ensure_ascii=True, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
