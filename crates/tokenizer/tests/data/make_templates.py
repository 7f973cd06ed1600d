#!/usr/bin/env python3
"""Makes templates.json: chat templates, conversations, and what `transformers` would render of them.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6
    venv/bin/python make_templates.py

The environment is that of `transformers` (utils/chat_template_utils.py): a sandbox with trimmed blocks, loop controls,
`tojson`, `raise_exception` and `strftime_now`. The templates are written here, in the ways that published ones have.
"""
import datetime
import json
from pathlib import Path

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1709211909  # 2024-02-29 13:05:09

TEMPLATES = {
    "turns and tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages and messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' }}{{ tool_call.name }}{{ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool>' + content + '</tool>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "headers and a date": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|/header|>\\n\\nToday: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.index0 == 0 %}
        {{- raise_exception('First comes the user, not ' ~ message['role'] ~ '.') }}
    {%- endif %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message['content'] | trim + '<|eot|>' }}
    {%- elif message.content is iterable %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- elif part['type'] == 'text' %}{{- part['text'] | trim }}{%- endif %}
        {%- endfor %}
        {{- '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{ "\\n\\n" }}{%- endfor %}
{%- endif %}
{% if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\\n\\n' }}
{% endif %}
""",
    "methods and values": """\
{% for m in messages if m.content is string and m.content %}
{{ loop.index }}/{{ loop.length }} {{ m.role.upper() }} {{ m.role | capitalize }} {{ m.content.strip() | length }} {{ m.content.split()[:2] }}
{{ m.content.replace('\\n', ' ').title() }} {{ m.content.find('a') }} {{ m.content.splitlines() | join('|') }} {{ m.get('absent') }} {{ m.get('absent', 0) }}
{{ m.content[:3] }} {{ m.content[-2:] }} {{ m.content[::-1] }} {{ 'a' in m.content }} {{ m.content.count('a') }} {{ m.items() | list | length }}
    {% if loop.first %}
  first
    {% endif %}
{% else %}
nobody
{% endfor %}
{{ [1, 2.5, true, none, 'x', {'a': [1]}] }} {{ 1e20 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ 7 % 2 }} {{ 2 ** 3 }} {% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}
{{ documents | default([], true) | map(attribute='title') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | map(attribute='role') | list }} {{ messages | map(attribute='role') | unique | sort | join }} {{ (messages | last).role if messages }}
{{ ' a '.lstrip() }}| {{ 'x' * 3 }} {{ 'ab'.join(['1', '2']) }} {{ "%s" | replace('%', '!') }} {{ 'a-b'.split('-', 1) }} {{ 'ß' | upper }} {{ [3, 1] | sort }} {{ [1, 2, 3] | reject('odd') | list }}
{{ {'한': ['é', "it's"], 'n': none, 't': true, 'f': 1.0} | tojson }} {{ messages | tojson(separators=(',', ':'), sort_keys=true) }}
{{ documents is defined }} {{ documents is none }} {{ absent is defined }} {{ absent }} {{ messages is sequence }} {{ 1 is number }} {{ {} is mapping }}
""",
    "loops and macros": """\
{%- macro field(name, value='-') -%}
  <{{ name }}>{{ value }}{{ caller() if caller else '' }}</{{ name }}>
{%- endmacro %}
{%- set ns = namespace(text='', n=0) %}
{%- for m in messages %}
  {%- if m.role == 'tool' %}{% continue %}{% endif %}
  {%- if ns.n >= 3 %}{% break %}{% endif %}
  {%- set ns.n = ns.n + 1 %}
  {%- set ns.text = ns.text + (m.content if m.content is string else 'parts') + ';' %}
  {%- set inner %}
    [{{ m.role }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem is defined }}]
  {%- endset %}
  {{- inner | trim }} {{ loop.cycle('odd', 'even') }}
{%- endfor %}
{{ ns.text | trim }} {{ field('a') }} {{ field('b', 2) }} {{ field(value=ns.n, name='c') }}
{% filter upper %}shout{% endfilter %} {# nothing #}
{% with x = 1 %}{{ x }}{% endwith %} {{ 'yes' if ns.n > 1 else 'no' }} {{ ns.n if false }}
{% raw %}{{ raw }}{% endraw %}
  {%+ if true %} kept {% endif +%}
end
""",
}

CALL = {"type": "function", "function": {"name": "light", "arguments": {"lamp": "불", "on": True, "level": 0.5, "none": None}}}
TOOL = {"type": "function", "function": {"name": "light", "description": "Lights \"it\".", "parameters": {"type": "object", "properties": {"lamp": {"type": "string"}}, "required": ["lamp"]}}}
CONVERSATIONS = [
    {"messages": [{"role": "system", "content": ""}]},
    {"messages": [{"role": "user", "content": "  Where is the lamp?\nTell.  "}], "add_generation_prompt": True},
    {"messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\n등대"},
                  {"role": "user", "content": "b"}], "add_generation_prompt": True, "variables": {"enable_thinking": False}},
    {"messages": [{"role": "user", "content": "light it"}, {"role": "assistant", "content": "so", "reasoning_content": "\nhm\n", "tool_calls": [CALL, CALL]},
                  {"role": "tool", "content": "{\"ok\": true}"}, {"role": "tool", "content": "lit"}, {"role": "assistant", "content": "done"}], "tools": [TOOL]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}],
     "tools": [TOOL, TOOL], "documents": [{"title": "One", "text": "t"}, {"title": "Two"}]},
    {"messages": [{"role": "assistant", "content": "first"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "image"}]}, {"role": "user", "content": "tab\tquote\"\\"}], "variables": {"date_string": "never"}},
]


class Raised(Exception):
    pass


def environment():
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise Raised(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)
    return env


def main():
    env = environment()
    conversations = []
    for given in CONVERSATIONS:
        variables = {"bos_token": "<s>", **given.get("variables", {})}
        conversations.append({"tools": None, "documents": None, "add_generation_prompt": False, **given, "variables": variables, "now": NOW})
    recorded = []
    for name, source in TEMPLATES.items():
        texts = []
        for given in conversations:
            values = {key: value for key, value in given.items() if key not in ("variables", "now")}
            try:
                texts.append({"text": env.from_string(source).render(**values, **given["variables"]), "raised": None})
            except Raised as raised:
                texts.append({"raised": str(raised)})
        recorded.append({"name": name, "source": source, "texts": texts})
    out = json.dumps({"conversations": conversations, "templates": recorded}, ensure_ascii=False, separators=(",", ":"))
    (Path(__file__).resolve().parent / "templates.json").write_text(out + "\n", encoding="utf-8")
    print(f"templates.json: {len(out.encode())} bytes")


main()
