"""The service distaff.v1.Tokenization."""

import grpc

from ..front import Front
from .failures import Context
from .native_request import chat_of
from .protos.distaff.v1 import tokenization_pb2 as pb
from .protos.distaff.v1 import tokenization_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Tokenization"].full_name


class TokenizationService(tokenization_pb2_grpc.TokenizationServicer):
    """
    Args:
        front: whose tokenizer it is.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        tokenization_pb2_grpc.add_TokenizationServicer_to_server(self, server)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        self._front.check_model(request.model)
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        ids = await self._front.tokenize(request.text, add_special=special)
        return pb.TokenizeResponse(token_ids=ids, context=self._front.card.context)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        self._front.check_model(request.model)
        return pb.DetokenizeResponse(text=await self._front.detokenize(request.token_ids))

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Context
    ) -> pb.ApplyChatTemplateResponse:
        self._front.check_model(request.model)
        chat = chat_of(request.chat)
        return pb.ApplyChatTemplateResponse(
            text=await self._front.render(chat), token_ids=await self._front.tokenize(chat)
        )
