"""Small chat templates of our own, each with the features of one family of models: what a renderer must get right."""

from __future__ import annotations

CALLS = (
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ '\n<tool_call>\n' + ({'name': call.function.name, 'arguments': "
    "call.function.arguments} | tojson) + '\n</tool_call>' }}{% endfor %}{% endif %}"
)

# A system turn by default, tools in it, calls in the answer (as Qwen2.5 has them).
DEFAULT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% else %}{% set s = 'You are a helpful model.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + s }}{% if tools %}{{ '\n<tools>' }}{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}"
    "{{ '\n</tools>' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif not (loop.first and m.role == 'system') %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    + CALLS
    + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The thinking of earlier turns is dropped; the last turn always has a block for it (as Qwen3).
THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% set c = m.content %}{% set r = m.reasoning_content | default('') %}"
    "{% if not r and '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1] %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + r.strip('\n') + '\n</think>\n\n' + c.lstrip('\n') }}{% else %}{{ c }}{% endif %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# BOS inside, another name for the assistant, turns that must alternate, no system, content stripped (as Gemma).
ALTERNATING = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)

# No prompt of its own for an answer, an answer that begins with a space, end of text behind it (as Llama-2 and Mistral).
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% else %}{{ raise_exception('Only user and assistant') }}"
    "{% endif %}{% endfor %}"
)

# Headers of special tokens, the date of today, a call that ends with another token than an answer (as Llama-3.1).
HEADERS = (
    "{{ bos_token }}{{ '<|start|>system<|end_header|>\n\nToday: ' + strftime_now('%d %b %Y') + '<|eot|>' }}"
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|end_header|>\n\n' }}"
    '{% if m.tool_calls %}{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' + (m.tool_calls[0].function.arguments'
    " | tojson) + '}<|eom|>' }}{% else %}{{ m.content | trim + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end_header|>\n\n' }}{% endif %}"
)

# End of text behind the last turn, but only where no answer is asked for (as Phi-3).
TRAILING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# The last turn ends with another token than earlier ones (as gpt-oss).
TWO_ENDS = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + m.content + ('<|return|>' if loop.last and m.role == 'assistant' else '<|end|>') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

# The assistant's text is marked, without the token that ends it; arguments of calls are texts (as DeepSeek).
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments }}{% endfor %}"
    "{% endgeneration %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# A mark for the text, one for each call, and one for the end.
MARKED_TWICE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% for c in m.tool_calls or [] %}{% generation %}{{ '<call>' + c.function.name + c.function.arguments }}{% endgeneration %}"
    "{% endfor %}"
    "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The system turn is said beside the last question alone (as Mistral's of later versions).
SYSTEM_LAST = (
    "{% if messages[0].role == 'system' %}{% set system, said = messages[0].content, messages[1:] %}"
    "{% else %}{% set said = messages %}{% endif %}"
    "{% for m in said %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>' + (system + '\n' if loop.last and system is defined else '') + m.content + '<|im_end|>' }}"
    "{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)

# The mark holds the header, the end and the line break behind it (as SmolLM3).
MARKED_WHOLE = (
    "{% for m in messages %}{%- if m.role == 'assistant' -%}"
    "{% generation %}{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}"
    "{%- else -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif -%}{% endfor %}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

# Turns of other roles than these two are passed over (as Phi-3's first).
PASSING = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)

# What was said before a call is dropped once the conversation has gone on to an answer (as gpt-oss).
FORGETFUL = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' }}{% if m.tool_calls %}"
    "{% if loop.last %}{{ m.content }}{% endif %}{{ m.tool_calls[0].function.name + '<|eom|>' }}"
    "{% else %}{{ m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"
)

# Nothing special ends an answer.
ENDLESS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

# The same, and marked.
MARKED_ENDLESS = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

FAMILIES = {
    "default-system": DEFAULT_SYSTEM,
    "thinking": THINKING,
    "alternating": ALTERNATING,
    "inst": INST,
    "headers": HEADERS,
    "trailing": TRAILING,
    "two-ends": TWO_ENDS,
    "marked": MARKED,
    "marked-whole": MARKED_WHOLE,
}
