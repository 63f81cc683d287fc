"""The openai client, and a message of Anthropic's API, against SMG in front of a server. Prints what it saw as JSON.

python gateway.py URL QUESTION PROMPT MAX_TOKENS
"""

import json
import sys
import urllib.request

import openai


def main() -> None:
    url, question, prompt, max_tokens = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    greedy = {"model": model, "max_tokens": max_tokens, "temperature": 0}
    messages = [{"role": "user", "content": question}]
    seen = {"model": model}

    whole = client.chat.completions.create(messages=messages, **greedy)
    seen["chat"] = {"text": whole.choices[0].message.content, "usage": whole.usage.to_dict()}

    texts = []
    for chunk in client.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, **greedy
    ):
        texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        usage = chunk.usage or None
    seen["stream"] = {"text": "".join(texts), "messages": len(texts), "usage": usage.to_dict()}

    completion = client.completions.create(prompt=prompt, **greedy)
    seen["completion"] = {"text": completion.choices[0].text, "reason": completion.choices[0].finish_reason}
    body = {"model": model, "max_tokens": max_tokens, "temperature": 0, "messages": messages}
    request = urllib.request.Request(
        f"{url}/v1/messages", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        seen["anthropic"] = json.load(answer)["content"][0]["text"]
    try:
        client.chat.completions.create(messages=messages, response_format={"type": "json_object"}, **greedy)
    except openai.BadRequestError as error:
        seen["refused"] = str(error)
    print(json.dumps(seen))


main()
