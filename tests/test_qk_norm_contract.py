"""What qk_norm refuses, and its module."""

from typing import Any

import pytest
import torch

import tritonln
from tests.helpers.problems import BF16, F32, rand

Q, K, W, ROTARY = torch.ones(2, 3, 4, 8), torch.ones(2, 3, 1, 8), torch.ones(8), torch.ones(3, 8)

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "k no tensor": ({"k": None}, TypeError, r"argument 'k' must be Tensor, not NoneType"),
    "weight no tensor": ({"q_weight": 3}, TypeError, r"argument 'q_weight' must be Tensor, not int"),
    "one dimension": ({"q": W}, RuntimeError, r"expected q of \(\*, heads, N\), got \[8\]"),
    "too long": ({"q": torch.ones(1, 1025)}, RuntimeError, r"1 to 1024 values, got \[1, 1025\]: tritonln.rms_norm"),
    "other tokens": ({"k": K[:, :2]}, RuntimeError, r"Expected k size \[2, 3, 'any', 8\].*got \[2, 2, 1, 8\]"),
    "other length": ({"k": K[..., :4]}, RuntimeError, r"Expected k size .*got \[2, 3, 1, 4\]"),
    "integers": ({"q": Q.int()}, RuntimeError, r"expected q of dtype torch.float32 or .*got torch.int32"),
    "two dtypes": ({"k": K.half()}, RuntimeError, r"expected k of dtype torch.float32, got torch.float16"),
    "weight's shape": ({"k_weight": W[:4]}, RuntimeError, r"Expected k_weight size \[8\], got \[4\]"),
    "weight's dtype": ({"k_weight": W.half()}, RuntimeError, r"k_weight of dtype torch.float32, got torch.float16"),
    "cos alone": ({"cos": ROTARY}, RuntimeError, r"both or neither of cos and sin"),
    "half of cos": (
        {"cos": ROTARY[:, :4], "sin": ROTARY},
        RuntimeError,
        r"cos size \[3, 8\] or \[2, 3, 8\], got \[3, 4\]",
    ),
    "sin's batch": ({"cos": ROTARY, "sin": torch.ones(3, 3, 8)}, RuntimeError, r"Expected sin size .*got \[3, 3, 8\]"),
    "sin unlike cos": (
        {"cos": ROTARY, "sin": ROTARY[None]},
        RuntimeError,
        r"Expected sin size \[3, 8\], got \[1, 3, 8\]",
    ),
    "cos in integers": ({"cos": ROTARY.int(), "sin": ROTARY}, RuntimeError, r"expected cos of dtype .*got torch.int32"),
    "odd heads": (
        {"q": Q[..., :7], "k": K[..., :7], "cos": ROTARY[:, :7], "sin": ROTARY[:, :7]},
        RuntimeError,
        r"even number of values beside cos, got q of \[2, 3, 4, 7\]",
    ),
    "devices": ({"sin": ROTARY.to("meta"), "cos": ROTARY}, RuntimeError, r"got sin is on meta.*method qk_norm"),
    "eps": ({"eps": "a"}, TypeError, r"argument 'eps' must be float, not str"),
    "offset": ({"weight_offset": "a"}, TypeError, r"argument 'weight_offset' must be float, not str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    given, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        tritonln.qk_norm(**{"q": Q, "k": K, **given})


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_module(offset: float, device: torch.device) -> None:
    module = tritonln.nn.QKNorm(8, device=device, weight_offset=offset)
    q, k = (rand(2, 3, heads, 8, dtype=F32, device=device) for heads in (4, 2))
    cos, sin = (rand(3, 8, dtype=F32, device=device, seed=seed) for seed in (1, 2))
    for found, expected in zip(module(q, k, cos, sin), tritonln.qk_norm(q, k, cos=cos, sin=sin)):
        torch.testing.assert_close(found, expected)
    for parameter in module.parameters():
        parameter.data.uniform_()
    weights = {name: w + offset for name, w in module.state_dict().items()}
    assert list(weights) == ["q_weight", "k_weight"]
    for found, expected in zip(module(q, k), tritonln.qk_norm(q, k, **weights)):
        torch.testing.assert_close(found, expected)


def test_module_without_weights_and_its_words() -> None:
    module = tritonln.nn.QKNorm(8, None, False)
    assert list(module.parameters()) == []
    assert repr(module) == "QKNorm(8, eps=None, elementwise_affine=False)"
    assert repr(tritonln.nn.QKNorm(8, weight_offset=1.0)).endswith("True, weight_offset=1.0)")
    assert tritonln.nn.QKNorm(8, dtype=BF16).q_weight.dtype == BF16


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
def test_exported_is_one_op_and_decomposes() -> None:
    module = tritonln.nn.QKNorm(8)
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 1, 8)
    exported = torch.export.export(module, (q, k))
    ops = [n.target for n in exported.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert ops == [torch.ops.tritonln.qk_norm.default]
    plain = exported.run_decompositions({ops[0]: torch._decomp.decomposition_table[ops[0]]})
    assert {n.target.namespace for n in plain.graph.nodes if isinstance(n.target, torch._ops.OpOverload)} == {"aten"}
    for found, expected in zip(plain.module()(q, k), module(q, k)):
        torch.testing.assert_close(found, expected)
