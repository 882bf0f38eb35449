"""A torch DataLoader as calibration data, and build_engine(), which makes the batch that runs the batch that is fed.

    python examples/torch_dataloader.py model.onnx model.engine

Tensors may lie on the CPU or the GPU. PyTorch and TensorRT share the device's primary context, and so does the
calibrator; pycuda.autoinit would make another one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from calibrators import EntropyCalibrator, build_engine


class Noise(Dataset[tuple[torch.Tensor, int]]):
    """Stands for a dataset of yours that yields (image, label), normalised as in training."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index)), index % 10


class ByName:
    """A loader of (images, labels) -> a re-iterable of {input name: images}."""

    def __init__(self, loader: DataLoader[tuple[torch.Tensor, int]], name: str) -> None:
        self.loader, self.name = loader, name
        self.batch_size = loader.batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for images, _ in self.loader:
            yield {self.name: images.to(device)}


def main(model: str, engine: str) -> None:
    # drop_last: TensorRT reads the same number of rows every time.
    loader = DataLoader(Noise(), batch_size=16, drop_last=True)
    calibrator = EntropyCalibrator(
        ByName(loader, "image"), cache=f"{engine}.cache", model=model, data_key="noise, 64 samples, version 1"
    )
    built = build_engine(model, engine, calibrator=calibrator)
    print(f"{engine}: calibrated with batches of {built.batch_size}")
    for name, layer in built.coverage.costly.items():
        print(f"no INT8 range for {name}: {layer} falls back")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    main(*sys.argv[1:3])
