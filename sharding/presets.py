"""Layouts by name: the table of each, and the mesh axes that it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .layout import LOGICAL_AXES, MESH_AXES, Axes, Layout, Rules


@dataclass(frozen=True)
class Preset:
    """A table with a name.

    Args:
        axes: mesh axes that it uses beside `data`; the first takes all devices where no sizes are given.
        about: what it splits.
        use: when it is the right one.
        prefill, capacity: of Layout.
    """

    axes: tuple[str, ...]
    rules: Rules
    about: str
    use: str
    prefill: Rules = Rules()
    capacity: float | None = None


_TENSOR = Rules.of(heads=("tensor",), kv_heads=("tensor",), mlp=("tensor",), vocab=("tensor",))
_BOTH = ("expert", "tensor")
_LONG = ("sequence", "tensor")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "replica": Preset(
            (),
            Rules(),
            "nothing; each device holds the whole model and serves requests of its own",
            "the model fits into one device: most tokens per second, nothing is sent",
        ),
        "tensor": Preset(
            ("tensor",),
            _TENSOR,
            "heads, feed-forward and vocabulary; two all-reduces in a layer",
            "the model does not fit, or answers must come faster",
        ),
        "tensor-scatter": Preset(
            ("tensor",),
            _TENSOR,
            "as tensor; in prefill each device keeps its part of the residual stream: reduce-scatter and all-gather in "
            "place of all-reduce",
            "long prompts: norms and residuals are computed and held once, for the same bytes sent",
            prefill=Rules.of(tokens=("tensor",)),
        ),
        "tensor-2d": Preset(
            ("tensor", "tensor2"),
            _TENSOR.updated(embed=("tensor2",)),
            "as tensor, and the width of the model over tensor2: every matrix lies in blocks; the KV cache is held "
            "once for each tensor2",
            "many devices and few tokens: less is sent than along one axis of that length",
        ),
        "attention-ff": Preset(
            ("tensor", "tensor2"),
            _TENSOR.updated(mlp=("tensor", "tensor2"), vocab=("tensor", "tensor2")),
            "attention over tensor, feed-forward and vocabulary over tensor and tensor2",
            "fewer heads than devices: heads that do not divide further are held once for each tensor2",
        ),
        "sequence": Preset(
            ("sequence", "tensor"),
            _TENSOR.updated(context=("sequence",), mlp=_LONG, vocab=_LONG),
            "positions of the KV cache over sequence, heads over tensor, feed-forward and vocabulary over both; in "
            "prefill tokens over sequence, whose keys go round a ring; in decode what each device attends to is merged",
            "texts whose keys and values fill more than one device, and more devices than KV heads",
            prefill=Rules.of(tokens=("sequence",)),
        ),
        "sequence-alltoall": Preset(
            ("sequence", "tensor"),
            _TENSOR.updated(cache_heads=("tensor", "sequence"), mlp=_LONG, vocab=_LONG),
            "heads over tensor, those of the KV cache over sequence too, feed-forward and vocabulary over both; in "
            "prefill tokens over sequence, which attention exchanges for heads",
            "long prompts, and KV heads for all devices: less is sent than round a ring, and kernels attend as on one "
            "device",
            prefill=Rules.of(tokens=("sequence",)),
        ),
        "weight-gathered": Preset(
            ("tensor",),
            _TENSOR,
            "as tensor; in prefill tokens, and each layer's weights are gathered when it is computed",
            "prompts by the ten thousand tokens at once: weights are fewer bytes than the tokens' activations",
            prefill=Rules.of(tokens=("tensor",), heads=(), kv_heads=(), mlp=()),
        ),
        "attention-data": Preset(
            ("tensor",),
            _TENSOR.updated(mlp=("data", "tensor")),
            "requests over data, each replica with attention and KV cache of its own; heads and vocabulary over "
            "tensor, feed-forward over both, for the tokens of all replicas together",
            "fewer KV heads than devices and many requests: no KV head is held twice for one request, and most of the "
            "weights are held once",
        ),
        "pipeline": Preset(
            ("stage", "tensor"),
            _TENSOR.updated(layers=("stage",), vocab=("stage", "tensor")),
            "layers over stage, the vocabulary over stage and tensor, the rest over tensor; parts of the batch follow "
            "each other through the stages",
            "slow links between some of the devices: one activation is sent from stage to stage; stages wait for the "
            "first and the last parts of each step",
        ),
        "expert": Preset(
            ("expert", "tensor"),
            Rules.of(heads=_BOTH, kv_heads=_BOTH, mlp=("tensor",), expert=("expert",), vocab=_BOTH),
            "whole experts over expert, their width over tensor, heads and vocabulary over both; in prefill each "
            "device keeps its part of the residual stream and sends its tokens to the devices of their experts",
            "a mixture of experts whose experts are too narrow to be split",
            prefill=Rules.of(tokens=("expert",), routed=("expert",)),
            capacity=1.25,
        ),
    }
)


def table(name: str) -> Preset:
    """The preset of a name, or the product of several, as in "pipeline+expert".

    A product splits each logical axis along the axes of all its parts, in the order of the mesh. Steps with prompts are
    split as the first part that has such rules wants it; not at all in a pipeline, whose stages keep them whole.

    Raises:
        KeyError: there is no such preset.
    """
    parts = [PRESETS[each] for each in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    split = {axis for part in parts for axis in part.axes}
    rules: dict[str, Axes] = {}
    for logical in LOGICAL_AXES:
        along = {axis for part in parts for axis in part.rules[logical]}
        if along:
            rules[logical] = tuple(axis for axis in MESH_AXES if axis in along)
    if "cache_heads" in rules:  # a part of each projection's heads
        kept = rules.get("kv_heads", ())
        rules["cache_heads"] = (*kept, *(axis for axis in rules["cache_heads"] if axis not in kept))
    first = None if "layers" in rules else next((part for part in parts if part.prefill.table), None)
    return Preset(
        tuple(axis for axis in MESH_AXES if axis in split),
        Rules.of(**rules),
        "; ".join(part.about for part in parts),
        "; ".join(part.use for part in parts),
        Rules() if first is None else first.prefill,
        None if first is None else first.capacity,
    )


def preset(name: str, sizes: Mapping[str, int]) -> Layout:
    """The layout of a preset or a product on a mesh of these sizes; Layout.of and `table` say what is raised."""
    of = table(name)
    return Layout.of(name, sizes, of.rules, of.prefill, of.capacity)
