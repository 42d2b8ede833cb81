"""The zoo: small networks of all common kinds, with random weights and inputs that fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import layer_networks as layers
import pytest
import torch
from torch import nn

# Sizes that nearly all transformers have in common, under the names of most configurations.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 120}


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Args:
        build: Makes the network; its weights follow from torch's seed.
        inputs: Makes its inputs: positional ones in a tuple, or keywords in a dict.
        tied: Whether tensors of its state dict share memory.
        ratio: A ratio at which its outputs change visibly.
        fine: A ratio at which they hardly change.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple | dict[str, Any]]
    tied: bool = False
    ratio: float = 6.0
    fine: float = 2.5

    def make(self, seed: int) -> nn.Module:
        """The network in evaluation mode. No parameter keeps its constant initial value, such as the zeros of biases."""
        torch.manual_seed(seed)
        network = self.build().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 1.5)
                    module.num_batches_tracked.fill_(100)
        return network

    def outputs(self, network: nn.Module) -> list[torch.Tensor]:
        """What the network makes of the inputs, which are always the same."""
        torch.manual_seed(0)
        inputs = self.inputs()
        with torch.no_grad():
            found = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
        return _tensors(found)


def _tensors(found: Any) -> list[torch.Tensor]:
    """The tensors in nested outputs; caches of keys and values are left out."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Mapping):
        found = list(found.values())
    return [tensor for part in found for tensor in _tensors(part)] if isinstance(found, (list, tuple)) else []


def images(size: int, channels: int = 3) -> Callable[[], tuple]:
    """Inputs: two images."""
    return normal(2, channels, size, size)


def normal(*shapes: Any) -> Callable[[], tuple]:
    """Inputs of normal numbers: one of the shape given, or one for each tuple."""
    several = shapes if isinstance(shapes[0], tuple) else (shapes,)
    return lambda: tuple(torch.randn(shape) for shape in several)


def tokens(words: int) -> Callable[[], tuple]:
    """Inputs: two sequences of tokens."""
    return lambda: (torch.randint(1, words, (2, 9)),)


def text(*names: str) -> Callable[[], dict[str, Any]]:
    """Inputs of transformers: two sequences of tokens under each of the names."""
    return lambda: {name: torch.randint(3, SIZES["vocab_size"], (2, 9)) for name in names}


def alexnet():
    """The operators of AlexNet, at an eighth of its width."""
    widths = ((3, 8, 11), (8, 24, 5), (24, 48, 3), (48, 32, 3), (32, 32, 3))
    parts = []
    for place, (inputs, outputs, kernel) in enumerate(widths):
        parts += [nn.Conv2d(inputs, outputs, kernel, 1 if place else 4, kernel // 2), nn.ReLU(inplace=True)]
        parts += [nn.MaxPool2d(3, 2)] if place in (0, 1) else []
    dense = [nn.Dropout(), nn.Linear(128, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *dense, nn.Linear(64, 10))


def vgg16():
    """VGG-16 at an eighth of its width."""
    from torchvision.models import vgg

    widths = [width if width == "M" else width // 8 for width in vgg.cfgs["D"]]
    dense = [nn.Linear(64, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(vgg.make_layers(widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dense, nn.Linear(64, 10))


def mobilenet():
    """MobileNet-V2 at a quarter of its width."""
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(width_mult=0.25, num_classes=10)


def efficientnet():
    """EfficientNet with one block of each kind."""
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    blocks = [FusedMBConvConfig(1, 3, 1, 16, 16, 1), MBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(4, 5, 2, 24, 32, 1)]
    return EfficientNet(blocks, dropout=0.2, num_classes=10, last_channel=64)


def swin_v2():
    """Swin Transformer V2 of two stages."""
    from torchvision.models import swin_transformer as swin

    return swin.SwinTransformer(
        patch_size=[4, 4], embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=[8, 8], num_classes=10,
        block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
    )  # fmt: skip


def timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A network of timm with 10 classes."""
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=10, **settings)


def hugging(model: str, config: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Callable[[], nn.Module]:
    """A network of transformers, by its class and the class of its configuration. Only its parameters have the dtype."""

    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        network = getattr(transformers, model)(getattr(transformers, config)(**settings))
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        return network

    return build


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 120, "bos_token_id": 1, "eos_token_id": 1}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 120, "decoder_start_token_id": 0}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 120, "num_mel_bins": 16, "max_source_positions": 20,
    "max_target_positions": 16, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WAV2VEC2 = {
    **SIZES, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
CLIP_TEXT = {**SIZES, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
CLIP = {"text_config": CLIP_TEXT, "vision_config": {**SIZES, "image_size": 32, "patch_size": 8}, "projection_dim": 32}

TRANSFORMERS = {
    "bert": Network(hugging("BertForMaskedLM", "BertConfig", **SIZES), text("input_ids"), tied=True),
    "gpt2": Network(hugging("GPT2LMHeadModel", "GPT2Config", **GPT2), text("input_ids"), tied=True),
    "t5": Network(hugging("T5ForConditionalGeneration", "T5Config", **T5), text("input_ids", "decoder_input_ids"), tied=True),
    "llama": Network(hugging("LlamaForCausalLM", "LlamaConfig", **LLAMA), text("input_ids")),
    "llama_bfloat16": Network(hugging("LlamaForCausalLM", "LlamaConfig", torch.bfloat16, **LLAMA), text("input_ids"),
                              ratio=3.5, fine=1.4),
    "mixtral": Network(hugging("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **LLAMA), text("input_ids")),
    "mamba": Network(hugging("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, vocab_size=120),
                     text("input_ids"), tied=True),
    "whisper": Network(hugging("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
                       lambda: {"input_features": torch.randn(2, 16, 40), **text("decoder_input_ids")()}, tied=True),
    "clip": Network(hugging("CLIPModel", "CLIPConfig", **CLIP),
                    lambda: {**text("input_ids")(), "pixel_values": torch.randn(2, 3, 32, 32)}),
    "wav2vec2": Network(hugging("Wav2Vec2ForCTC", "Wav2Vec2Config", **WAV2VEC2), normal(2, 800)),
}  # fmt: skip
"""Networks of transformers, which `save_pretrained` writes to a folder."""

NETWORKS = {
    "alexnet": Network(alexnet, images(64)),
    "vgg16": Network(vgg16, images(32)),
    "resnet50": Network(timm("resnet50", channels=(8, 16, 32, 64), stem_width=8), images(32)),
    "mobilenet": Network(mobilenet, images(32)),
    "vit": Network(timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3), images(32)),
    "swin_v2": Network(swin_v2, images(64)),
    "convnext": Network(timm("convnext_tiny", depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)), images(32)),
    "efficientnet": Network(efficientnet, images(32)),
    **TRANSFORMERS,
    "lstm": Network(layers.BidirectionalLSTM, tokens(200)),
    "gru_tied_head": Network(layers.TiedGRU, tokens(300), tied=True),
    "unet": Network(layers.UNet, images(16)),
    "dcgan": Network(layers.dcgan, normal(2, 32, 1, 1)),
    "weight_norm_old": Network(lambda: layers.weight_norm(new=False), normal(2, 1, 20)),
    "weight_norm_new": Network(lambda: layers.weight_norm(new=True), normal(2, 1, 20)),
    "spectral_norm": Network(layers.spectral_norm, images(12)),
    "attention": Network(layers.Attention, normal((2, 8, 48), (2, 5, 32), (2, 5, 24))),
    "bilinear": Network(layers.TwoInputs, normal((2, 16), (2, 20))),
    "embedding_bag": Network(layers.BagOfWords, tokens(400)),
    "shared_modules": Network(layers.SharedModules, tokens(100), tied=True),
    "complex": Network(layers.Fourier, normal(2, 48)),
    "pruned": Network(layers.pruned, images(16), ratio=12.0),
}
"""All networks, by name."""
