"""The same step on torch devices: its jaxpr becomes a torch.fx graph, once per bucket (docs/torch.md).

Nothing outside this folder imports torch, and nothing imports this folder before a torch backend is asked for.
"""
