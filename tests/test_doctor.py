from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trtcal import doctor


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    known = {name.replace("_", "-"): number for name, number in versions.items()}
    monkeypatch.setattr(doctor, "_version", lambda name: known.get(name.replace("_", "-")))


def test_the_report_names_every_core_package_and_this_python() -> None:
    text = str(doctor.examine())
    for package in doctor.CORE:
        assert package in text
    assert "Python 3." in text


def test_it_is_json_for_a_machine() -> None:
    report = json.loads(json.dumps(doctor.examine().to_dict()))
    assert report["works"]["calibrate on the CPU (trtcal calibrate)"] is True


@pytest.mark.parametrize(
    ("versions", "works", "advice"),
    [
        ({}, False, "No TensorRT: caches are made here"),
        ({"tensorrt": "11.4.0.106"}, False, "has no calibrators"),
        ({"tensorrt": "10.3.0"}, True, "No package for device memory"),
        ({"tensorrt_cu12": "8.6.1"}, True, "No package for device memory"),
    ],
)
def test_advice_follows_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], works: bool, advice: str
) -> None:
    fake_versions(monkeypatch, **versions)
    report = doctor.examine()
    assert report.works["import TensorRT's calibrators (import calibrators)"] is works
    assert advice in " ".join(report.advice)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'NVIDIA H100, 580.10'", ("NVIDIA H100", "580.10")),
        ("exit 9", (None, None)),
        ("echo", (None, None)),
    ],
)
def test_the_gpu_is_what_nvidias_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: tuple[str | None, str | None]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = doctor.examine()
    assert (report.gpu, report.driver) == found
    fake_versions(monkeypatch, tensorrt="10.3.0", cuda_bindings="12.6")
    assert doctor.examine().works["build INT8 engines with them (trtcal build)"] is (found[0] is not None)
