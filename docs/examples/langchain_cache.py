"""LangChain over the OpenAI API of a running server (`distaff serve --http-port 8000`), with two caches.

LangChain's own cache answers an identical call by itself: nothing is sent. Without it the call is sent, and the
server's prefix cache has most of the prompt computed, which the usage tells.

    pip install langchain-openai
    python langchain_cache.py [http://HOST:PORT]
"""

import json
import sys
import urllib.request

from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
RULES = SystemMessage("You are a careful assistant. You answer every question in one short sentence. " * 8)


def served() -> int:
    """How many requests the server has answered."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total"))


def ask(question: str) -> dict[str, object]:
    before = served()
    message = chat.invoke([RULES, HumanMessage(question)])
    assert isinstance(message, AIMessage) and message.usage_metadata is not None
    return {
        "text": message.content,
        "requests": served() - before,
        "prompt_tokens": message.usage_metadata["input_tokens"],
        "cached_prompt_tokens": message.usage_metadata.get("input_token_details", {}).get("cache_read", 0),
    }


with urllib.request.urlopen(f"{URL}/v1/models") as answer:
    model = json.load(answer)["data"][0]["id"]
chat = ChatOpenAI(model=model, base_url=f"{URL}/v1", api_key="unused", temperature=0, max_tokens=16)

set_llm_cache(InMemoryCache())
calls = [ask("What is the capital of France?"), ask("What is the capital of France?")]
set_llm_cache(None)
calls.append(ask("What is the capital of France?"))
for call in calls:
    print(json.dumps(call))
