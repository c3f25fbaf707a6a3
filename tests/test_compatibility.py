"""What else torch does with an operator, for each of them: rows of the README's table that have no test elsewhere."""

from __future__ import annotations

import copy
import functools
import io
import pathlib
import pickle
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import tritonln
from tests.helpers.operators import (
    FUNCTIONS,
    N,
    Tensors,
    derived,
    each,
    each_norm_thoroughly,
    same,
    some,
    tensors_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own

# ---- autograd's modes --------------------------------------------------------------------------


@each
def test_checkpointing(name: str, device: torch.device) -> None:
    """Of both kinds, and a selective policy that keeps the op's results; the op is deterministic, and may be either."""
    function, tensors = FUNCTIONS[name], tensors_of(name, device)
    expected = derived(function, tensors)
    policy = lambda ctx, op, *a, **k: (  # noqa: E731
        CheckpointPolicy.MUST_SAVE if op.namespace == "tritonln" else CheckpointPolicy.PREFER_RECOMPUTE
    )
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    same(derived(lambda t: checkpoint(function, t, use_reentrant=False), tensors), expected)
    same(derived(lambda t: checkpoint(function, t, use_reentrant=False, context_fn=contexts), tensors), expected)
    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    outputs = checkpoint(lambda *v: function(dict(zip(tensors, v))), *leaves, use_reentrant=True)
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    plainly = {word: t.detach().requires_grad_() for word, t in tensors.items()}
    outputs = function(plainly)
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    same([t.grad for t in leaves], [t.grad for t in plainly.values()])


@some
def test_saved_tensors_may_be_offloaded(name: str, device: torch.device) -> None:
    expected = derived(FUNCTIONS[name], tensors_of(name, device))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.cpu().clone(), lambda t: t.to(device)):
        same(derived(FUNCTIONS[name], tensors_of(name, device)), expected)


@some
def test_inference_mode_and_anomaly_mode(name: str, device: torch.device) -> None:
    tensors = tensors_of(name, device)
    with torch.inference_mode():
        outputs = FUNCTIONS[name](tensors)
    with torch.autograd.set_detect_anomaly(True):
        same(outputs, derived(FUNCTIONS[name], tensors)[: len(outputs)])


@pytest.mark.parametrize("way", ["kernels", "without_kernels"])
@each_norm_thoroughly
def test_y_may_be_written_over(name: str, way: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    """As activations and dropout in place do."""
    if way != "kernels":
        request.getfixturevalue(way)

    def changed(t: Tensors) -> tuple[Tensor, ...]:
        y, *rest = FUNCTIONS[name](t)
        return y.mul_(2), *rest

    def anew(t: Tensors) -> tuple[Tensor, ...]:
        y, *rest = FUNCTIONS[name](t)
        return y * 2, *rest

    same(derived(changed, tensors_of(name, device)), derived(anew, tensors_of(name, device)))
    with torch.no_grad():
        outputs = FUNCTIONS[name](tensors_of(name, device))
    for y in outputs:  # in grad mode, by what requires a gradient
        assert y.mul_(torch.ones(N, device=device, requires_grad=True)).requires_grad


@some
def test_threads(name: str, device: torch.device) -> None:
    """Forward and backward in several at once."""
    function, tensors = FUNCTIONS[name], tensors_of(name, device)
    expected, found = derived(function, tensors), []
    workers = [threading.Thread(target=lambda: found.append(derived(function, tensors))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    for one in found:
        same(one, expected)


# ---- modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "AddRMSNorm", "AdaptiveLayerNorm", "GatedRMSNorm", "QKNorm"])
def test_modules_are_copied_and_stored(kind: str) -> None:
    module = getattr(tritonln.nn, kind)(N)
    for p in module.parameters():
        nn.init.normal_(p)
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = getattr(tritonln.nn, kind)(N)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (*copies, loaded):
        same(other.parameters(), module.parameters())
    if kind == "LayerNorm":
        before, weight = module.weight, nn.Parameter(torch.ones(N))
        torch.utils.swap_tensors(module.weight, weight)
        assert module.weight is before
        x = torch.randn(3, N)
        torch.testing.assert_close(module(x), F.layer_norm(x, (N,), torch.ones(N), module.bias))


@each_norm_thoroughly
def test_expanded_weights(name: str, device: torch.device) -> None:
    """As call_for_per_sample_grads makes them of parameters."""
    tensors = tensors_of(name, device)
    words = [word for word in tensors if word.endswith(("weight", "bias"))]
    leaves = {word: tensors[word].clone().requires_grad_() for word in words}
    x = tensors["x"].clone().requires_grad_()
    derived_by = lambda t: sum(y.pow(3).sum() for y in FUNCTIONS[name](t))  # noqa: E731
    samples = {word: ExpandedWeight(leaf, len(x), "sum") for word, leaf in leaves.items()}
    derived_by({**tensors, "x": x, **samples}).backward()
    for i in range(len(x)):
        one = {word: t if word in words else t[i : i + 1] for word, t in {**tensors, "x": x.detach()}.items()}
        some = {word: one[word].clone().requires_grad_() for word in (*words, "x")}
        *expected, dx = torch.autograd.grad(derived_by({**one, **some}), list(some.values()))
        for word, ref in zip(words, expected, strict=True):
            torch.testing.assert_close(leaves[word].grad_sample[i], ref)  # type: ignore[attr-defined]
        assert x.grad is not None
        torch.testing.assert_close(x.grad[i : i + 1], dx)


def test_per_sample_gradients_of_modules() -> None:
    net = nn.Sequential(tritonln.nn.LayerNorm(N), nn.Linear(N, N), tritonln.nn.RMSNorm(N))
    x = torch.randn(3, 5, N)
    call_for_per_sample_grads(net, loss_reduction="mean")(x).pow(3).sum((1, 2)).mean().backward()
    for i in range(3):
        expected = torch.autograd.grad(net(x[i : i + 1]).pow(3).sum(), list(net.parameters()))
        for p, ref in zip(net.parameters(), expected):
            torch.testing.assert_close(p.grad_sample[i], ref)  # type: ignore[attr-defined]


def test_every_test_of_the_table_is_there() -> None:
    """In the README, under the title Compatibility."""
    root = pathlib.Path(__file__).parents[1]
    table = (root / "README.md").read_text().split("## Compatibility")[1].split("\n## ")[0]
    named = set(re.findall(r"\btest_\w+", table))
    defined = {
        n for file in (root / "tests").rglob("test_*.py") for n in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 20
    assert named <= defined, named - defined
