"""Every metric of a server, once: the exposition, the table in the documentation and the tests all read EXPORTS."""

from .gen_ai import GEN_AI
from .own import OWN
from .vllm_names import VLLM

EXPORTS = (*OWN, *GEN_AI, *VLLM)
