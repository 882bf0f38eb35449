"""Fashion-MNIST's idx files -> three small classifiers that INT8 treats differently, and data to judge them on.

    python examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist -o fashion

Writes ``cnn.onnx`` (convolutions with batch norm and ReLU), ``mobile.onnx`` (depthwise convolutions with
HardSwish) and ``attention.onnx`` (a transformer on 4 x 4 patches), all of them ``image``
(N, 1, 28, 28) in 0..1 -> ``logits`` (N, 10); ``calibration.npz`` (512 training images) and ``labelled.npz``
(the test images and their labels) as trtcal takes them:

    trtcal calibrate fashion/mobile.onnx --data fashion/calibration.npz -o mobile.cache
    trtcal evaluate fashion/mobile.onnx --cache mobile.cache --data fashion/labelled.npz
    trtcal sensitivity fashion/mobile.onnx --cache mobile.cache --data fashion/labelled.npz

``--data`` holds the four ``*-ubyte`` files, gzipped or not (Debian: ``apt install dataset-fashion-mnist``).
Needs torch and onnx; two to five minutes a model on two CPU cores.
"""

# mypy: allow-subclassing-any
# (nn.Module is Any where torch is not installed)

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from train_demo_model import CALIBRATION_SAMPLES, ConvNorm, balanced, read_idx, to_input, top1, train, write_model


class Cnn(nn.Sequential):
    """Plain convolutions, each with batch norm and ReLU; INT8 costs nothing unless a range is wrong."""

    def __init__(self) -> None:
        super().__init__(
            ConvNorm(1, 16, 3, nn.ReLU()),
            nn.MaxPool2d(2),
            ConvNorm(16, 32, 3, nn.ReLU()),
            nn.MaxPool2d(2),
            ConvNorm(32, 64, 3, nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class Separable(nn.Module):
    """Widen, filter each channel by itself, narrow again, around a shortcut (arXiv:1801.04381)."""

    def __init__(self, channels: int, expansion: int = 3) -> None:
        super().__init__()
        wide = channels * expansion
        self.widen = ConvNorm(channels, wide, 1, nn.Hardswish())
        self.filter = ConvNorm(wide, wide, 3, nn.Hardswish(), groups=wide)
        self.narrow = ConvNorm(wide, channels, 1, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        y: Tensor = x + self.narrow(self.filter(self.widen(x)))
        return y


class Mobile(nn.Sequential):
    """Narrow and depthwise, where one scale serves channels of different ranges; INT8 costs half a point."""

    def __init__(self) -> None:
        super().__init__(
            ConvNorm(1, 16, 3, nn.Hardswish(), stride=2),
            *(Separable(16) for _ in range(2)),
            nn.MaxPool2d(2),
            *(Separable(16) for _ in range(3)),
            ConvNorm(16, 96, 1, nn.Hardswish()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, 10),
        )


class Attention(nn.Module):
    """Self-attention over the tokens, then two dense layers, each around a shortcut (arXiv:1706.03762)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) -> the same shape."""
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.project(self.norm1(x)).chunk(3, dim=2)
        )
        scores = queries @ keys.transpose(2, 3) / keys.shape[-1] ** 0.5
        x = x + self.join((scores.softmax(dim=3) @ values).transpose(1, 2).flatten(2))
        y: Tensor = x + self.dense(self.norm2(x))
        return y


class Transformer(nn.Module):
    """49 patches of 4 x 4 pixels, two layers of attention, the mean of the tokens."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.layers = nn.Sequential(*(Attention(width) for _ in range(layers)))
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, 28, 28) in 0..1 -> (N, 10) logits."""
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classify(self.norm(self.layers(x)).mean(dim=1))
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": Cnn, "mobile": Mobile, "attention": Transformer}


def main() -> None:
    """Train each model, report its accuracy, write it; then the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the idx files")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the files go")
    options = parser.parse_args()

    images = read_idx(options.data, "train-images-idx3-ubyte")
    labels = read_idx(options.data, "train-labels-idx1-ubyte")
    test = read_idx(options.data, "t10k-images-idx3-ubyte")
    truth = read_idx(options.data, "t10k-labels-idx1-ubyte")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        torch.manual_seed(options.seed)
        net = MODELS[name]()
        train(net, images, labels, options.epochs)
        print(f"{name}: top-1 {top1(net, test, truth):.4f} of {len(test)} test images", flush=True)
        write_model(net, options.output / f"{name}.onnx", name)
    chosen = balanced(labels, CALIBRATION_SAMPLES, np.random.default_rng(0))
    np.savez_compressed(options.output / "calibration.npz", image=to_input(images[chosen]).numpy())
    np.savez_compressed(options.output / "labelled.npz", image=to_input(test).numpy(), labels=truth.astype(np.int64))


if __name__ == "__main__":
    main()
