"""replace_transformers: transformers that are torch's so far."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonln
from tests.helpers.problems import F32, rand

B, T, S, E, H = 2, 5, 4, 24, 2


class Own(nn.TransformerEncoderLayer):
    """Somebody's."""


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch's own, of pre-norm stacks
def test_replaced_in_the_middle_of_training(device: torch.device) -> None:
    """The optimizer goes on with the parameters that it has."""
    torch.manual_seed(0)
    theirs = nn.Transformer(E, H, 2, 2, 40, dropout=0.0, batch_first=True, norm_first=True).to(device)
    ours = copy.deepcopy(theirs)
    models = ours, theirs
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-3) for m in models]
    x, y, target = (rand(B, size, E, dtype=F32, device=device, seed=size) for size in (S, T, T))
    for step in range(4):
        if step == 2:
            parameters, names = list(ours.parameters()), set(ours.state_dict())
            report = tritonln.nn.replace_transformers(ours, dry_run=True)
            assert type(ours.encoder) is nn.TransformerEncoder
            assert tritonln.nn.replace_transformers(ours) == report
            assert len(report.swapped) == 6
            assert report.swapped["decoder.layers.1"] == (
                "TransformerDecoderLayer -> tritonln.nn.TransformerDecoderLayer"
            )
            assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
            assert set(ours.state_dict()) == names
            assert isinstance(ours.encoder, nn.TransformerEncoder)
        losses = []
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x, y), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    assert sorted(tritonln.nn.restore_transformers(ours)) == sorted(report.swapped)
    assert {type(m) for m in ours.modules()} == {type(m) for m in theirs.modules()}


def test_what_is_left_and_why() -> None:
    model = nn.ModuleDict(
        {
            "own": Own(E, H),
            "set": nn.TransformerEncoderLayer(E, H),
            "ours": tritonln.nn.TransformerEncoderLayer(E, H),
            "norm": nn.LayerNorm(E),
        }
    )
    model["set"].forward = lambda x: x  # type: ignore[assignment]
    report = tritonln.nn.replace_transformers(model)
    assert not report.swapped
    assert report.left == {
        "own": "Own: it is of a subclass",
        "set": "TransformerEncoderLayer: its forward was set on the instance, as accelerate's hooks do it",
        "ours": "TransformerEncoderLayer: it is tritonln's already",
    }
    assert str(report).startswith("swapped: 0\nleft: 3\n  own: Own: it is of a subclass")
    for function in (tritonln.nn.replace_transformers, tritonln.nn.restore_transformers):
        with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got int"):
            function(3)  # type: ignore[arg-type]
