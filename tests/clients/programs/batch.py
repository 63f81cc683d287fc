"""OpenAI's client and batches: sends a file, waits for its batch, takes its files back. Prints what it saw as JSON.

python batch.py URL FILE
"""

import json
import sys
import time
from pathlib import Path

import openai

ENDED = ("completed", "failed", "cancelled")


def main() -> None:
    url, source = sys.argv[1], Path(sys.argv[2])
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    sent = client.files.create(file=source, purpose="batch")
    asked = {"input_file_id": sent.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    job = client.batches.create(**asked, metadata={"for": "a test"})
    seen = {"first": job.status}
    while job.status not in ENDED:
        time.sleep(0.2)
        job = client.batches.retrieve(job.id)
    seen["status"], seen["metadata"] = job.status, job.metadata
    seen["counts"] = job.request_counts.model_dump()
    for name, id in (("input", sent.id), ("output", job.output_file_id), ("errors", job.error_file_id)):
        seen[name] = client.files.content(id).text
    seen["batches"] = [each.id == job.id for each in client.batches.list(limit=1)]
    seen["files"] = sorted(each.purpose for each in client.files.list())

    second = client.batches.create(**asked)
    seen["cancelled"] = client.batches.cancel(second.id).status
    while second.status not in ENDED:
        time.sleep(0.1)
        second = client.batches.retrieve(second.id)
    seen["ended"] = second.status
    try:
        client.batches.create(**{**asked, "input_file_id": "file-none"})
    except openai.APIStatusError as error:
        seen["refused"] = [error.status_code, error.body["message"]]
    client.files.delete(sent.id)
    seen["left"] = sorted(each.purpose for each in client.files.list())
    print(json.dumps(seen))


main()
