"""Transformer layers and stacks beside torch's: the same parameters, masks, values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritonln
from tests.helpers.problems import BF16, F32, rand
from tests.helpers.twins import alike, drops_alike, fill, results

B, T, S, E, H = 2, 5, 4, 24, 2
KINDS = ("TransformerEncoder", "TransformerDecoder")
LAST = {"TransformerEncoder": "dropout2", "TransformerDecoder": "dropout3"}
Call = Callable[[Any, Tensor], Tensor]
kinds = pytest.mark.parametrize("kind", KINDS)
# torch's own, of pre-norm stacks and of masks of two types
warns = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True", "ignore:Support for mismatched", "ignore:.*nested tensors"
)


def pair(kind: str, device: torch.device, dtype: torch.dtype = F32, **options: Any) -> tuple[nn.Module, nn.Module]:
    """tritonln's and torch's, which drops what tritonln's drops: torch's dropout is the last of a pre-norm layer."""
    given = {"dim_feedforward": 40, "dtype": dtype, "device": device, **options}
    theirs = getattr(nn, kind)(E, H, **given)
    fill(theirs)
    ours = getattr(tritonln.nn, kind)(E, H, **given)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    last = LAST[kind.removesuffix("Layer")] if options.get("norm_first") else ""
    return ours, drops_alike(theirs, but=last)


def stacks(kind: str, device: torch.device, layers: int = 2, **options: Any) -> tuple[nn.Module, nn.Module]:
    ours, theirs = pair(f"{kind}Layer", device, **options)
    found = [getattr(m, kind)(layer, layers, nn.LayerNorm(E)) for m, layer in ((tritonln.nn, ours), (nn, theirs))]
    fill(found[1])
    found[0].load_state_dict(found[1].state_dict(), strict=True)
    return found[0].to(device), drops_alike(found[1].to(device))


def calls(
    kind: str, batch_first: bool, device: torch.device, dtype: torch.dtype = F32
) -> tuple[Tensor, dict[str, Call]]:
    """x, and ways to call a layer or a stack with it."""
    causal = nn.Transformer.generate_square_subsequent_mask(T, device=device, dtype=dtype)
    padding = torch.zeros(B, T, dtype=torch.bool, device=device)
    padding[0, -2:] = True
    scores = rand(B * H, T, T, dtype=dtype, device=device, seed=8)
    x, memory = (rand(B, size, E, dtype=dtype, device=device, seed=size) for size in (T, S))
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    if kind.startswith("TransformerEncoder"):
        mask = "mask" if kind == "TransformerEncoder" else "src_mask"
        return x, {
            "plain": lambda m, x: m(x),
            "causal": lambda m, x: m(x, causal, is_causal=True),
            "bools": lambda m, x: m(x, **{mask: causal < 0, "src_key_padding_mask": padding}),
            "scores": lambda m, x: m(x, scores),
            "padding as scores": lambda m, x: m(x, src_key_padding_mask=padding * -3.0),
        }
    held = torch.zeros(B, S, dtype=torch.bool, device=device)
    held[1, 0] = True
    across = rand(T, S, dtype=dtype, device=device, seed=9)
    return x, {
        "plain": lambda m, x: m(x, memory),
        "causal": lambda m, x: m(x, memory, causal, tgt_is_causal=True),
        "bools": lambda m, x: m(x, memory, causal < 0, None, padding, held),
        "scores": lambda m, x: m(x, memory, scores, across),
    }


@kinds
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train", "without kernels"])
def test_layers(kind: str, norm_first: bool, mode: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    """All masks in one; the layouts, activations and biases differ from one to the next."""
    if mode == "without kernels":
        request.getfixturevalue("without_kernels")
    for batch_first, bias, activation in ((True, True, F.gelu), (False, False, "relu")):
        options = {"batch_first": batch_first, "bias": bias, "activation": activation, "norm_first": norm_first}
        ours, theirs = pair(f"{kind}Layer", device, dropout=0.0 if mode == "without kernels" else 0.3, **options)
        ours.train(mode != "eval")
        theirs.train(mode != "eval")
        x, ways = calls(f"{kind}Layer", batch_first, device)
        for call in ways.values():
            alike(ours, theirs, x, call)
    alike(ours, theirs, x[:, 0], lambda m, x: m(x, *([x[:S]] if kind == "TransformerDecoder" else [])))


@warns
@kinds
@pytest.mark.parametrize("norm_first", [False, True])
def test_stacks(kind: str, norm_first: bool, device: torch.device) -> None:
    """Trained, with dropout; tritonln's layers in torch's stacks too."""
    for batch_first in (True, False):
        options = {"norm_first": norm_first, "batch_first": batch_first, "dropout": 0.3, "activation": F.gelu}
        ours, theirs = stacks(kind, device, **options)
        x, ways = calls(kind, batch_first, device)
        for name in ("causal", "bools"):
            alike(ours, theirs, x, ways[name], kappa=4.0)
        ours.__class__ = getattr(nn, kind)
        drops_alike(theirs, but=LAST[kind] if norm_first else "")
        alike(ours, theirs, x, ways["causal"], kappa=4.0)


@warns
def test_inference_with_padding_is_torch_s(device: torch.device) -> None:
    """Where torch's stack makes nested tensors of the batch, and where it does not."""
    for norm_first in (False, True):
        ours, theirs = (m.eval() for m in stacks("TransformerEncoder", device, norm_first=norm_first, batch_first=True))
        x, _ = calls("TransformerEncoder", True, device)
        padding = torch.zeros(B, T, dtype=torch.bool, device=device)
        padding[0, -2:] = True
        with torch.no_grad():
            found, expected = (m(x, src_key_padding_mask=padding) for m in (ours, theirs))
            torch.testing.assert_close(found[~padding], expected[~padding])
            if not norm_first:
                assert found.equal(expected)
            ours.use_nested_tensor = False
            torch.testing.assert_close(ours(x, src_key_padding_mask=padding)[~padding], expected[~padding])


@warns
@kinds
def test_what_does_not_fit_is_refused_as_by_torch(kind: str, device: torch.device) -> None:
    """With torch's error and in its words, those of training."""
    ours, theirs = pair(f"{kind}Layer", device, batch_first=True)
    x, _ = calls(f"{kind}Layer", True, device)
    encoder = kind == "TransformerEncoder"
    of = "src" if encoder else "tgt"
    zeros = functools.partial(torch.zeros, device=device)
    masks = [zeros(T, T + 1), zeros(B, T, T), zeros(T), zeros(B, 2, T, T), zeros(T, T, dtype=torch.long)]
    paddings = [zeros(T, B), zeros(B, T + 1), zeros(T), zeros(B, T, 1), zeros(B, T, dtype=torch.long)]
    wrong = [{f"{of}_mask": mask} for mask in masks] + [{f"{of}_key_padding_mask": padding} for padding in paddings]
    wrong += [{"is_causal" if encoder else "tgt_is_causal": True}]
    given: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [((x, x), options) for options in wrong]
    given += [((x[None], x[None]), {}), ((x[..., :-1], x), {}), ((x[0, 0], x), {})]
    if not encoder:
        given += [((x, x[:1]), {}), ((x, x[0]), {}), ((x, x[..., :-1]), {}), ((x, x), {"memory_mask": zeros(T)})]
    for inputs, options in given:
        found = []
        for layer in (ours, theirs):
            with pytest.raises((RuntimeError, AssertionError)) as error:
                layer.train()(*inputs[: 1 if encoder else 2], **options)
            found.append((error.type, str(error.value)))
        assert found[0] == found[1]


def test_modules_are_what_they_are(device: torch.device) -> None:
    """Somebody hooks into one, puts another in its place, changes what it drops."""
    options = {"norm_first": True, "batch_first": False, "dropout": 0.3}
    ours, theirs = (m.layers for m in stacks("TransformerDecoder", device, layers=1, **options))
    for layer in (ours[0], theirs[0]):
        layer.norm1, layer.norm2 = nn.Identity(), nn.RMSNorm(E, device=device)
        layer.norm3.register_forward_hook(lambda module, args, y: 2 * y)
        layer.dropout1.p, layer.dropout3 = 0.6, nn.Identity()
        layer.self_attn.register_forward_hook(lambda module, args, found: (3 * found[0], found[1]))
    theirs[0].dropout2.__class__ = nn.Dropout  # as the norm behind it is called by itself
    x, ways = calls("TransformerDecoderLayer", False, device)
    alike(ours[0], theirs[0], x, ways["bools"])


@warns
def test_layers_of_a_stack_that_are_hooked_into(device: torch.device) -> None:
    """They take and give tensors, as torch's."""
    seen: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    found = dict(zip(seen, stacks("TransformerEncoder", device, norm_first=True, batch_first=True, dropout=0.0)))
    x, ways = calls("TransformerEncoder", True, device)
    for name, model in found.items():
        model.layers[1].register_forward_hook(lambda module, args, y, name=name: seen[name].append(y))
        ways["causal"](model, x)
    torch.testing.assert_close(seen["ours"], seen["theirs"])


@pytest.mark.parametrize("norm_first", [False, True])
def test_mixed_dtypes_give_torch_s(norm_first: bool, device: torch.device) -> None:
    """Under autocast a sublayer gives 16 bits beside a residual stream in fp32."""
    ours, theirs = pair("TransformerEncoderLayer", device, norm_first=norm_first, batch_first=True, dropout=0.0)
    x, _ = calls("TransformerEncoderLayer", True, device)
    with torch.autocast(device.type, torch.bfloat16):
        found, expected = ours(x), theirs(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    ours, theirs = (m.to(BF16).eval() for m in (ours, theirs))
    assert ours(x.to(BF16)).dtype == BF16
    torch.testing.assert_close(ours(x.to(BF16)), theirs(x.to(BF16)), atol=0.1, rtol=0.1)


@warns
@kinds
def test_compiled_and_exported(kind: str, device: torch.device) -> None:
    ours, _ = stacks(kind, device, layers=2, norm_first=True, batch_first=True, dropout=0.0)
    x, ways = calls(kind, True, device)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    expected = results(ours, x, ways["bools"])
    for name, t in results(compiled, x, ways["bools"]).items():
        torch.testing.assert_close(t, expected[f"d{name[11:]}" if name.startswith("d_orig_mod") else name])
    given = (x,) if kind == "TransformerEncoder" else (x, x)
    assert torch.export.export(ours, given).module()(*given).equal(ours(*given))


def with_own_blocks(base: Any) -> Any:
    """A subclass whose sublayers are its own, and drop by themselves."""

    class Scaled(base):
        def _sa_block(self, x: Tensor, attn_mask: Any, key_padding_mask: Any, is_causal: bool = False) -> Tensor:
            return 2 * super()._sa_block(x, attn_mask, key_padding_mask, is_causal)

        def _ff_block(self, x: Tensor) -> Tensor:
            return torch.tanh(super()._ff_block(x))

    if hasattr(base, "_mha_block"):
        Scaled._mha_block = lambda self, *given: torch.sin(base._mha_block(self, *given))
    return Scaled


@warns
@kinds
@pytest.mark.parametrize("norm_first", [False, True])
def test_blocks_of_a_subclass_are_called(kind: str, norm_first: bool, device: torch.device) -> None:
    """By layers alone and in stacks, with masks as torch gives them; those of an instance too."""
    options = {"norm_first": norm_first, "batch_first": True, "dropout": 0.0}
    found = stacks(kind, device, **options)
    for stack, module in zip(found, (tritonln.nn, nn)):
        for layer in stack.layers:  # type: ignore[union-attr]
            layer.__class__ = with_own_blocks(getattr(module, f"{kind}Layer"))
    ours, theirs = found
    x, ways = calls(kind, True, device)
    alike(ours, theirs, x, ways["bools"])
    for stack in found:
        last: Any = stack.layers[1]  # type: ignore[index]
        last._ff_block = lambda y, last=last: last.linear2(last.linear1(y))
    alike(ours, theirs, x, ways["causal"])
    report = tritonln.nn.replace_transformers(nn.ModuleList(theirs.layers))  # type: ignore[arg-type]
    assert report.left == {str(i): "Scaled: it is of a subclass" for i in range(2)}
