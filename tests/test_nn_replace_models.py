"""replace_norms on real architectures, small and with random weights: outputs and gradients are the originals'."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.twins import alike, fill
from tritonln.nn import LlamaBlock, replace_norms, restore_norms, rotary_table

LAYERS = 2
NORMS = 2 * LAYERS + 1  # two in each layer, and one at the end, or after BERT's embeddings
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = {**SIZES, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TOKENS = torch.arange(3, 15).view(2, 6)
IMAGES = torch.arange(2.0 * 3 * 32 * 32).sin().view(2, 3, 32, 32)

declared = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> None:
    """That of PyPI beside a PyTorch for CPUs finds none of its operators, and is imported if they are declared."""
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for operator in ("nms", "qnms"):
                declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def transformers(name: str, **options: Any) -> Any:
    package = pytest.importorskip("transformers", reason="pip install 'tritonln[models]'")
    torch.manual_seed(0)
    return getattr(package, f"{name}Model")(getattr(package, f"{name}Config")(**options))


def llama() -> Any:
    return transformers("Llama", **WORDS)


def gpt2() -> Any:
    return transformers("GPT2", n_embd=32, n_layer=LAYERS, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=1)


def timm_vit() -> Any:
    timm = pytest.importorskip("timm", reason="pip install 'tritonln[models]'")
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=LAYERS, embed_dim=32, num_heads=2)


MODELS: dict[str, tuple[Callable[[], Any], torch.Tensor, str]] = {
    "Llama": (llama, TOKENS, 'LlamaRMSNorm -> tritonln.rms_norm, cast="llama"'),
    "GPT-2": (gpt2, TOKENS, "LayerNorm -> tritonln.layer_norm"),
    "BERT": (lambda: transformers("Bert", **WORDS), TOKENS, "LayerNorm -> tritonln.layer_norm"),
    "Gemma": (
        lambda: transformers("Gemma", **WORDS, num_key_value_heads=1, head_dim=16),
        TOKENS,
        "GemmaRMSNorm -> tritonln.rms_norm, weight_offset=1.0",
    ),
    "ViT": (
        lambda: transformers("ViT", **SIZES, image_size=32),
        IMAGES,
        "LayerNorm -> tritonln.layer_norm",
    ),
    "timm's ViT": (timm_vit, IMAGES, "LayerNorm -> tritonln.layer_norm"),
}


def run(model: Any, input: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and the gradient of each parameter that has one."""
    model.zero_grad()
    y = model(input)
    y = y if isinstance(y, torch.Tensor) else y.last_hidden_state
    (y * torch.arange(y.numel()).cos().view(y.shape)).sum().backward()
    return {"": y.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def assert_same(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    """To rounding errors, which in gradients that vanish (of the biases of keys) are those of their terms."""
    assert after.keys() == before.keys()
    largest = max(float(g.abs().max()) for name, g in before.items() if name)
    for name, expected in before.items():
        scale = max(float(expected.abs().max()), largest / 1000)
        error = float((after[name] - expected).abs().max())
        assert error <= 2e-5 * scale, f"{name or 'output'}: error {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_original_s(name: str, device: torch.device) -> None:
    make, input, became = MODELS[name]
    model = make().eval().to(device)
    names = replace_norms(model, dry_run=True).swapped
    assert list(names.values()) == [became] * NORMS
    for norm in names:
        for parameter in model.get_submodule(norm).parameters():
            torch.nn.init.normal_(parameter)
    before = run(model, input.to(device))
    replace_norms(model)
    assert_same(run(model, input.to(device)), before)
    assert restore_norms(model) == list(names)
    assert run(model, input.to(device))[""].equal(before[""])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what PEFT reads of transformers
@pytest.mark.parametrize("order", ["PEFT first", "swapped first"])
def test_peft_adapters(order: str, device: torch.device) -> None:
    peft = pytest.importorskip("peft", reason="pip install 'tritonln[models]'")
    model = llama().eval().to(device)
    if order == "swapped first":
        replace_norms(model)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)  # each norm is there twice now: as it was, and the copy that is trained
    if order == "PEFT first":
        assert len(replace_norms(model).swapped) == 2 * NORMS
    after = run(model, TOKENS.to(device))
    assert len([name for name in after if "norm.modules_to_save" in name]) == NORMS
    assert len(restore_norms(model)) == 2 * NORMS
    assert_same(after, run(model, TOKENS.to(device)))


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_llama_block_has_the_state_and_the_values_of_decoder_layers(name: str) -> None:
    package = pytest.importorskip("transformers", reason="pip install 'tritonln[models]'")
    module = importlib.import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
    made = getattr(package, f"{name}Config")(
        hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        rms_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = getattr(module, f"{name}DecoderLayer")(made, 0)
    fill(theirs)
    ours = LlamaBlock(24, 4, 40, 2, 8, qk_norm=name == "Qwen3")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    cos, sin = rotary_table(torch.arange(5), 8)

    def call(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if layer is ours:
            return ours(x, cos, sin)
        y = layer(x, position_embeddings=(cos[None], sin[None]))
        return y if isinstance(y, torch.Tensor) else y[0]

    alike(ours, theirs, torch.randn(2, 5, 24), call)
