"""Two networks of everyday shape -> ONNX files to try the calibration on; needs torch and onnx.

    python examples/export_models.py -o models              # any batch size
    python examples/export_models.py -o models --static 8   # batch size 8, written into the graph

Writes ``resnet50.onnx`` (images), ``encoder.onnx`` (a transformer that takes token ids and an attention
mask, both int64) and ``encoder_data.npz`` (64 samples for it). The weights are random, from a fixed seed, so
the outputs mean nothing; the activations are spread as in a trained network, and only they matter here.
"""

# mypy: allow-subclassing-any
# (nn.Module is Any where torch is not installed)

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, SAMPLES = 1000, 32, 64


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (arXiv:1512.03385); the 3x3 carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.relu(self.bn3(self.conv3(y)) + self.downsample(x))
        return y


class ResNet50(nn.Module):
    """ResNet-50 with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        stages, inputs = [], 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            first = Bottleneck(inputs, width, stride)
            inputs = 4 * width
            rest = [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, 224, 224) float32 -> (N, 1000) logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def settle(net: ResNet50) -> None:
    """Give every batch norm a random gain and offset, and the statistics of what really arrives at it.

    Without this, random weights let the activations die out or explode within a few blocks.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain average over the batches below
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.normal_(module.bias, std=0.2)
    net.train()
    with torch.no_grad():
        for _ in range(4):
            coarse = nn.functional.interpolate(torch.randn(8, 3, 14, 14), size=224, mode="bilinear")
            net(coarse + 0.3 * torch.randn(8, 3, 224, 224))


class Encoder(nn.Module):
    """A transformer encoder of four layers, then a classifier on the mean over a sample's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 256), nn.Embedding(LENGTH, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        for p in self.layers.parameters():  # the layers start as copies of one
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        self.classify = nn.Linear(256, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both (N, LENGTH) int64, the mask 1 for a token and 0 for padding -> (N, 8) logits."""
        x = self.tokens(input_ids) + self.positions.weight
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        weight = attention_mask.unsqueeze(2).to(x.dtype)
        logits: Tensor = self.classify((x * weight).sum(1) / weight.sum(1))
        return logits


def encoder_data(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sentences of 4 to ``LENGTH`` tokens, frequent ids as frequent as in language (Zipf); 0 is padding."""
    ids = np.minimum(rng.zipf(1.3, (SAMPLES, LENGTH)), VOCABULARY - 1)
    mask = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (SAMPLES, 1))
    return {"input_ids": (ids * mask).astype(np.int64), "attention_mask": mask.astype(np.int64)}


def export(net: nn.Module, inputs: dict[str, Tensor], path: Path, *, static: bool, opset: int) -> None:
    """``net`` -> ONNX at ``path``; the batch dimension is "N", or where ``static`` that of ``inputs``."""
    names = [*inputs, "logits"]
    torch.onnx.export(
        net.eval(),
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_axes=None if static else {name: {0: "N"} for name in names},
        opset_version=opset,
        dynamo=False,  # names tensors after the modules, and writes opsets that TensorRT 8 reads
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write resnet50.onnx, encoder.onnx and encoder_data.npz.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--static", type=int, metavar="N", help="fix the batch dimension at N")
    options = parser.parse_args()
    if options.static is not None and not 1 <= options.static <= SAMPLES:
        parser.error(f"--static must be 1 to {SAMPLES}, got {options.static}")
    options.output.mkdir(parents=True, exist_ok=True)
    static = options.static is not None
    batch = options.static if static else 2  # 2: tracing with 1 may take the dimension for a constant

    torch.manual_seed(0)
    resnet = ResNet50()
    settle(resnet)
    image = {"image": torch.zeros(batch, 3, 224, 224)}
    export(resnet, image, options.output / "resnet50.onnx", static=static, opset=13)

    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel has no ONNX counterpart
    data = encoder_data(np.random.default_rng(0))
    sample = {name: torch.from_numpy(array[:batch]) for name, array in data.items()}
    export(Encoder(), sample, options.output / "encoder.onnx", static=static, opset=17)
    ids, mask = data["input_ids"], data["attention_mask"]
    np.savez_compressed(options.output / "encoder_data.npz", input_ids=ids, attention_mask=mask)


if __name__ == "__main__":
    main()
