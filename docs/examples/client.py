"""Asks a running server (`distaff serve`) over gRPC: whole answers, streams, conversations, batches, many at once.

python client.py [HOST:PORT]
"""

import asyncio
import sys

from distaff.serving.client import AsyncClient, Client, InvalidRequestError, ServerError

TARGET = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
SAMPLING = {"temperature": 0, "max_tokens": 16}


def one_by_one() -> None:
    with Client(TARGET, timeout=120) as client:
        model = client.model()
        print(f"{model.name}: {model.context} tokens of context")

        result = client.generate("The capital of France is", **SAMPLING)
        print(result.text, result.finish_reason, result.usage, f"{result.timings.first_token:.3f} s")

        question = [{"role": "user", "content": "What is the capital of France?"}]
        with client.generate_stream(question, **SAMPLING) as stream:  # leaving the block early ends the request
            for text in stream.text():
                print(text, end="", flush=True)
            print(f" [{stream.result().finish_reason}]")

        # One that fails leaves the others alone.
        for answer in client.batch(["Roses are", [-1], "Violets are"], **SAMPLING):
            print(f"{answer.field}: {answer}" if isinstance(answer, ServerError) else answer.text)

        try:
            client.generate("Hello", top_p=2)
        except InvalidRequestError as error:
            print(f"refused because of {error.field}: {error}")

        print(f"perplexity {client.score('The capital of France is Paris.').perplexity:.1f}")


async def many_at_once() -> None:
    async with AsyncClient(TARGET, timeout=120) as client:
        prompts = [f"The number {number} is" for number in range(8)]
        results = await asyncio.gather(*(client.generate(prompt, **SAMPLING) for prompt in prompts))
        print(sum(result.usage.completion_tokens for result in results), "tokens")


one_by_one()
asyncio.run(many_at_once())
