"""Fashion-MNIST's idx files -> the files that ``trtcal demo`` ships: ``model.onnx`` and ``images.npz``.

    python scripts/train_demo_model.py --data /usr/share/datasets/fashion-mnist -o trtcal/demo

``--data`` holds the four ``*-ubyte`` files, gzipped or not (Debian: ``apt install dataset-fashion-mnist``).
Needs torch and onnx; about five minutes on two CPU cores. A seed gives the same files again on the same
machine with the same torch; another torch or processor gives a model that is as good, not equal.
"""

# mypy: allow-subclassing-any
# (nn.Module is Any where torch is not installed)

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CALIBRATION_SAMPLES = 512
LABELLED_SAMPLES = 2000
OPSET = 13  # the first with per-channel Q/DQ; TensorRT 8 to 11 and every ONNX Runtime in use read it


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation; "same" padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, act: nn.Module, groups: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y

    def fold(self) -> None:
        """Move the batch norm's statistics into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class DemoNet(nn.Module):
    """A small classifier with one of each thing that calibration treats differently.

    Convolutions, a residual add, max pools, a depthwise convolution, HardSwish, a global average pool.
    The stem turns the images' black background into one constant per channel, a histogram of spikes: there
    the entropy threshold depends on the batch size, and a stem with no bias and no norm is free of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3, nn.ReLU())
        self.pool1 = nn.MaxPool2d(2)
        self.widen = ConvNorm(16, 40, 3, nn.ReLU())
        self.residual1 = ConvNorm(40, 40, 3, nn.ReLU())
        self.residual2 = ConvNorm(40, 40, 3, nn.Identity())
        self.join = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.depthwise = ConvNorm(40, 40, 3, nn.Hardswish(), groups=40)
        self.pointwise = ConvNorm(40, 96, 1, nn.Hardswish())
        self.pool3 = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, 28, 28) in 0..1 -> (N, 10) logits."""
        x = self.widen(self.pool1(self.stem(image)))
        x = self.pool2(self.join(x + self.residual2(self.residual1(x))))
        x = self.pool3(self.pointwise(self.depthwise(x)))
        logits: Tensor = self.classify(torch.flatten(x, 1))
        return logits


def read_idx(folder: Path, name: str) -> np.ndarray:
    """``folder/name`` or ``folder/name.gz`` -> its bytes as uint8, in the shape its header gives.

    The format is that of the MNIST files: two zero bytes, the type (8 = uint8), the rank, then the
    dimensions as big-endian int32.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            raw = path.read_bytes()
            break
    else:
        raise SystemExit(f"{folder / name}: no such file, gzipped or not; --data must hold Fashion-MNIST")
    data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an idx file of unsigned bytes (it starts with {data[:4].hex()})")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">i4", count=rank, offset=4).tolist())
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()  # torch wants it writable


def balanced(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` indices into ``labels``, the classes equally often (to within one) and in turn.

    In turn, so that every batch of a calibration holds every class.
    """
    classes = np.unique(labels)
    picks = [rng.permutation(np.flatnonzero(labels == c))[: -(-count // len(classes))] for c in classes]
    return np.stack(picks, axis=1).reshape(-1)[:count]


def write_images(path: Path, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, labels: np.ndarray) -> None:
    """The two splits -> ``path``: calibration images of the first, labelled images of the second.

    The choice has a seed of its own, so that ``--seed`` changes the network and never the data.
    """
    index = balanced(train_labels, CALIBRATION_SAMPLES, np.random.default_rng(0))
    np.savez_compressed(
        path,
        calibration=train[index],
        calibration_index=index.astype(np.int32),
        labelled=test[:LABELLED_SAMPLES],
        labels=labels[:LABELLED_SAMPLES],
    )


def to_input(images: np.ndarray) -> Tensor:
    """(N, 28, 28) uint8 -> (N, 1, 28, 28) float32 in 0..1."""
    return torch.from_numpy(images).unsqueeze(1).to(torch.float32) / 255


def train(net: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 128) -> None:
    """Cross entropy, Adam, one learning-rate cycle; images are mirrored at random."""
    x, y = to_input(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = len(x) // batch
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x))[: steps * batch].view(steps, batch):
            mirrored = torch.rand(batch, 1, 1, 1) < 0.5
            sample = torch.where(mirrored, x[rows].flip(3), x[rows])
            loss = nn.functional.cross_entropy(net(sample), y[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            cycle.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)


def top1(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit is their label's."""
    net.eval()
    with torch.no_grad():
        predicted = torch.cat([net(to_input(chunk)).argmax(1) for chunk in np.array_split(images, 20)])
    return float((predicted.numpy() == labels).mean())


def write_model(net: nn.Module, path: Path, name: str = "demo") -> None:
    """The trained network -> ONNX at ``path``: batch norms folded, axis 0 free, no trace of this machine."""
    net.eval()
    for module in net.modules():
        if isinstance(module, ConvNorm):
            module.fold()
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 28, 28),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        dynamo=False,  # the TorchScript exporter names tensors after the modules: /stem/conv/Conv_output_0
    )
    model = onnx.load(path)
    model.producer_name, model.producer_version = "trtcal", ""
    model.graph.name, model.graph.doc_string = name, ""
    for node in model.graph.node:
        node.doc_string = ""  # the exporter's stack trace, with the paths of this machine
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def main() -> None:
    """Train, report the accuracy, write both files."""
    parser = argparse.ArgumentParser(description="Train the demo's classifier and gather its images.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the idx files")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the files go")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    images = read_idx(options.data, "train-images-idx3-ubyte")
    labels = read_idx(options.data, "train-labels-idx1-ubyte")
    test = read_idx(options.data, "t10k-images-idx3-ubyte")
    truth = read_idx(options.data, "t10k-labels-idx1-ubyte")

    net = DemoNet()
    train(net, images, labels, options.epochs)
    print(f"top-1: {top1(net, test, truth):.4f} of {len(test)} test images,", end=" ")
    print(f"{top1(net, test[:LABELLED_SAMPLES], truth[:LABELLED_SAMPLES]):.4f} of those that ship")

    options.output.mkdir(parents=True, exist_ok=True)
    write_model(net, options.output / "model.onnx")
    write_images(options.output / "images.npz", images, labels, test, truth)


if __name__ == "__main__":
    main()
