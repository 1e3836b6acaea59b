"""Batch norm folded into the convolutions before it: the same function with fewer passes over memory."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode without the batch norms that follow a convolution directly; the network itself where
    its forward pass cannot be traced or nothing can be folded.

    Equal up to rounding: a pair with a hook on it, or with tensors that are used elsewhere too, is kept. The copy has
    other modules: new hooks belong on the network.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    if hooked(network):  # tracing begins inside its hooks
        return network
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception:  # any program may stand in a forward pass; tracing fails in as many ways
        return network
    modules, count = dict(traced.named_modules()), 0
    read = {str(node.target).rpartition(".")[0] for node in traced.graph.nodes if node.op == "get_attr"}
    for node in traced.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before = node.args[0]
        conv = modules.get(str(before.target)) if isinstance(before, fx.Node) and before.op == "call_module" else None
        shared = sum(other.target == before.target for other in traced.graph.nodes) > 1 if conv is not None else True
        if type(conv) is not nn.Conv2d or len(before.users) > 1 or shared or node.kwargs or len(node.args) != 1:
            continue
        if hooked(conv) or hooked(norm) or not read.isdisjoint((str(before.target), str(node.target))):
            continue
        parent, _, name = str(before.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(conv, norm))
        modules[str(before.target)] = traced.get_submodule(str(before.target))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        count += 1
    if not count:
        return network
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)


def hooked(module: nn.Module) -> bool:
    """Whether a hook sees the module's passes, which it may change."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
