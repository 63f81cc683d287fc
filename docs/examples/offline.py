"""Texts from a model in this very process, without a server.

python offline.py [MODEL]
"""

import sys

from distaff.serving import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")

# Prompts run together; each answer is what it would be alone.
params = SamplingParams(temperature=0, max_tokens=16)
for completion in llm.generate(["The capital of France is", "The capital of Italy is"], params):
    print(completion.text, completion.finish_reason, completion.usage.completion_tokens)

# A conversation, through the model's chat template.
answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], params)
print(answer.text)

# Token by token.
for event in llm.stream("Once upon a time", params):
    print(event.text, end="", flush=True)
print()
llm.close()
