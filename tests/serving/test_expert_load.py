"""The load of experts: counted where an engine is asked to, and told among its metrics."""

import json
from dataclasses import replace

import numpy as np

from distaff.models.step import StepBatch, StepOutput
from distaff.serving import Engine, EngineConfig, Request, SamplingParams
from distaff.serving.expert_load import ExpertLoad
from distaff.serving.plan import Bucket

from ..fakes import FakePrograms
from .test_engine import BUCKETS, MAX_LEN, PAGE, SLOTS, VOCAB


class Mixture(FakePrograms):
    """Every row of a step chooses expert 0 of layer 1, and one token waits."""

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        rows = int((np.asarray(batch.slots) < self.num_slots).sum())
        load = np.array([[[0, 0, 0], [rows, 0, 1]]], np.int32)
        return replace(super().step(bucket, batch), expert_load=load)


def test_counts_are_added_up_over_steps() -> None:
    device = Mixture(
        BUCKETS, num_slots=SLOTS, max_len=MAX_LEN, page_size=PAGE, num_pages=(64,), windows=(None,), vocab_size=VOCAB
    )
    with Engine(
        device, EngineConfig(max_batch=SLOTS, max_step_tokens=32, max_decode_steps=1), vocab_size=VOCAB
    ) as engine:
        engine.generate([Request((1, 2, 3), SamplingParams(max_tokens=4, temperature=0)) for _ in range(2)])
        told = engine.metrics.snapshot()["experts"]
    json.dumps(told)
    assert told["chosen"] == told["layers"][0][0] == 8 and told["layers"] == [[8, 0]]
    assert told["waited"] >= 4 and told["uneven"] == told["most_uneven"] == 2.0


def test_unevenness_is_that_of_the_layers_with_experts() -> None:
    load = ExpertLoad(3, 5)
    assert load.snapshot() == {"chosen": 0, "waited": 0, "uneven": 0.0, "most_uneven": 0.0, "layers": []}
    load.add(np.array([[0, 0, 0, 0, 0], [2, 2, 2, 2, 0], [6, 1, 1, 0, 3]]))
    load.add(np.array([[0, 0, 0, 0, 0], [2, 2, 2, 2, 0], [6, 1, 1, 0, 3]]))
    told = load.snapshot()
    assert told["layers"] == [[4, 4, 4, 4], [12, 2, 2, 0]] and told["waited"] == 6 and told["chosen"] == 32
    assert told["most_uneven"] == 3.0 and told["uneven"] == 2.0
