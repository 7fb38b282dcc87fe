"""Small chat templates with the constructs of published ones, and what `transformers` 4.57.1 and 5.24.0 make of them.

The texts were printed by `apply_chat_template(messages, tools=…, tokenize=False, add_generation_prompt=True)`; both
versions agree on every one.
"""

from __future__ import annotations

QUESTION = [{"role": "user", "content": " Où <là> & «là»? "}]
TALK = [
  {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?\n"},
  {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"}]
TOOLS = [{
  "type": "function", "function": {
    "name": "time_of", "description": "l'heure à <ville>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
CALL = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [
  {"type": "function", "function": {"name": "time_of", "arguments": {"city": "Ürzig", "zone": None}}}]},
  {"role": "tool", "content": "12:00"}, {"role": "tool", "content": "13:00"}]

MARKED = """
{%- if messages[0].role != 'system' %}
  {{- '<|im_start|>system\\nHelp.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = """
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
  {%- set content = '[[' + message.role + ']]\\n\\n' + (message.content | trim) + eos_token %}
  {%- if loop.first %}
    {%- set content = bos_token ~ content %}
  {%- endif %}
  {{- content }}
{%- endfor %}
{%- if tools is not none or documents is not none %}TOOLS{% endif %}
{{- '[[assistant]]\\n\\n' if add_generation_prompt else eos_token }}
"""
ALTERNATING = """
{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{{- bos_token }}
{%- for message in rest %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('user and assistant must take turns') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {%- if loop.last and system is defined %}{{- '[Q] ' + system + '\\n\\n' + message['content'] + ' [/Q]' }}
    {%- else %}{{- '[Q] ' + message['content'] + ' [/Q]' }}{%- endif %}
  {%- else %}
    {%- generation %}{{- ' ' + message['content'] + eos_token }}{%- endgeneration %}
  {%- endif %}
{%- endfor %}
"""
WITH_TOOLS = """
{%- if tools %}
  {{- '<|im_start|>system\\nTools:' }}
  {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(last=messages | length - 1, calls=0) %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}
    {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
    {{- '\\n<answer>' ~ message.content ~ '</answer>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- continue %}
  {%- endif %}
  {{- '<|im_start|>' + message.role }}
  {%- if message.content is string %}{{- '\\n' + message.content }}{%- endif %}
  {%- for call in message.tool_calls or [] %}
    {%- set seen.calls = seen.calls + 1 %}
    {%- set call = call.function if call.function is defined else call %}
    {{- '\\n<call ' ~ seen.calls ~ '>{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
    {{- call.arguments | tojson(indent=2, sort_keys=true, separators=[',', ' = ']) }}{{- '}</call>' }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
"""
NAMES = (
  "{{ tools is none }} {{ documents is none }} {{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }} "
  "{{ cls_token is defined }} {{ messages | tojson(indent=2) }} {{ strftime_now('%%') }}"
  "{% for n in range(9) %}{% if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %}")

# name → (template, messages, tools)
CASES = {
  "marked": (MARKED, QUESTION, None), "marked-talk": (MARKED, TALK, None), "headers": (HEADERS, TALK, None),
  "alternating": (ALTERNATING, TALK, None), "tools": (WITH_TOOLS, CALL, TOOLS), "no-tools": (WITH_TOOLS, CALL, None),
  "names": (NAMES, QUESTION, None)}
WANTED = {
  "marked": (
    "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n Où <là> & «là»? <|im_end|>\n"
    "<|im_start|>assistant\n"),
  "marked-talk": (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?\n<|im_end|>\n<|im_start|>assistant\n"
    "1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"),
  "headers": (
    "<s>[[system]]\n\nBe brief.</s>[[user]]\n\nOne?</s>[[assistant]]\n\n1</s>[[user]]\n\n"
    "Two?</s>[[assistant]]\n\n"),
  "alternating": "<s>[Q] One?\n [/Q] 1</s>[Q] Be brief.\n\nTwo? [/Q]",
  "tools": (
    "<|im_start|>system\nTools:\n"
    '{"type": "function", "function": {"name": "time_of", "description": "l\'heure à <ville>",'
    ' "parameters": {"type": "object", "properties": {"city": {"type": "string"}},'
    ' "required": ["city"]}}}<|im_end|>\n<|im_start|>user\n Où <là> & «là»? <|im_end|>\n'
    '<|im_start|>assistant\n<call 1>{"name": "time_of", "arguments": {\n  "city" = "Ürzig",\n'
    '  "zone" = null\n}}</call><|im_end|>\n<|im_start|>user\n<answer>12:00</answer>\n'
    "<answer>13:00</answer><|im_end|>\n<|im_start|>assistant\n"),
  "no-tools": (
    "<|im_start|>user\n Où <là> & «là»? <|im_end|>\n<|im_start|>assistant\n"
    '<call 1>{"name": "time_of", "arguments": {\n  "city" = "Ürzig",\n  "zone" = null\n'
    "}}</call><|im_end|>\n<|im_start|>user\n<answer>12:00</answer>\n<answer>13:00</answer><|im_end|>\n"
    "<|im_start|>assistant\n"),
  "names": (
    'True True <s></s><unk><pad> False [\n  {\n    "role": "user",\n'
    '    "content": " Où <là> & «là»? "\n  }\n] %012'),
}
