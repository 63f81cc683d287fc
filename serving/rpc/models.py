"""The service distaff.v1.Models."""

import json

import grpc

from ..front import Front, ModelCard, UnknownModelError
from .failures import Context
from .protos.distaff.v1 import models_pb2 as pb
from .protos.distaff.v1 import models_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Models"].full_name


class ModelsService(models_pb2_grpc.ModelsServicer):
    """
    Args:
        front: what is served.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        models_pb2_grpc.add_ModelsServicer_to_server(self, server)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[model_message(self._front.card, name) for name in self._front.names])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        names = self._front.names
        name = request.name or names[0]
        if name not in names:
            raise UnknownModelError(f"name is {name[:100]!r}, expected one of those served: {', '.join(names)}")
        return pb.GetModelResponse(model=model_message(self._front.card, name))


def model_message(card: ModelCard, name: str) -> pb.Model:
    """A model by one of its names."""
    model = pb.Model(
        name=name,
        family=card.family,
        vocab_size=card.vocab_size,
        context=card.context,
        dtype=card.dtype,
        backend=card.backend,
        layout=card.layout,
        max_batch=card.max_batch,
        has_tokenizer=card.has_tokenizer,
        has_chat_template=card.has_chat_template,
        embeds=card.embeds,
        eos_token_ids=sorted(card.eos_ids),
        parameters=[
            pb.Parameter(
                name=parameter.name,
                default_json=json.dumps(parameter.default),
                expected=parameter.domain.expected,
                description=parameter.doc,
            )
            for parameter in card.capabilities
        ],
    )
    if card.bos_id is not None:
        model.bos_token_id = card.bos_id
    return model
