"""What works on a machine is tried, and what does not is named with its fix."""

import re
from importlib import metadata
from unittest.mock import Mock

import pytest
from onnx import TensorProto

from secateur.cli.tools import doctor
from secateur.common.errors import MachineError, UsageError
from secateur.export.runtime import provider_choice, providers

KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def test_doctor_tries_and_says_how_to_fix(monkeypatch):
    monkeypatch.setattr(doctor, "why_not", lambda name: "" if name == "cpu" else "its library is missing.")
    findings = {one.name: one for one in doctor.examine()}
    assert findings["provider cpu"].advice == doctor.READY
    (cuda,) = re.findall(r"nvidia-cudnn-cu(\d+)", " ".join(metadata.requires("onnxruntime-gpu")))
    assert f"pip install tensorrt-cu{cuda}" in findings["provider tensorrt"].advice
    assert "pip install" in findings["provider cuda"].advice
    assert findings["temporary folder"].works
    doctor.require(findings.values(), "cpu")
    with pytest.raises(MachineError, match="its library is missing"):
        doctor.require(findings.values(), "cuda")
    with pytest.raises(UsageError, match="openvino"):
        doctor.require(findings.values(), "vulkan")


def test_doctor_works_where_the_runtime_is_gone(monkeypatch):
    """Its own advice may have been followed by half: both packages uninstalled, nothing installed yet."""
    gone = Mock(side_effect=ImportError("No module named 'onnxruntime'"))
    for module in (provider_choice, doctor):
        monkeypatch.setattr(module, "runtime_library", gone)
        monkeypatch.setattr(module, "runtime_packages", dict)
    provider_choice.why_not.cache_clear()
    findings = {one.name: one for one in doctor.examine()}
    provider_choice.why_not.cache_clear()
    assert findings["ONNX Runtime"].advice == "pip install --upgrade secateur"
    for name in providers.PROVIDERS:
        assert not findings[f"provider {name}"].works
        assert "onnxruntime cannot be imported: No module named 'onnxruntime'." in findings[f"provider {name}"].advice
    assert "tensorrt-cu" not in findings["provider tensorrt"].advice


def test_two_runtime_packages_are_named(monkeypatch):
    both = {"onnxruntime": "1", "onnxruntime-gpu": "1"}
    monkeypatch.setattr(doctor, "runtime_packages", lambda: both)
    (finding,) = (one for one in doctor.examine() if one.name == "ONNX Runtime")
    assert not finding.works
    assert "pip uninstall onnxruntime onnxruntime-gpu" in finding.advice


@pytest.mark.parametrize(
    ("on_gpu", "triton", "compiler", "works"),
    [
        (False, False, "g++", True),
        (False, True, None, False),
        (True, True, None, True),
        (True, False, "g++", False),
    ],
)
def test_what_torch_compiles_with_is_found(monkeypatch, on_gpu, triton, compiler, works):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name == compiler else None)
    finding = doctor._compiler()
    assert finding.works == works
    assert (finding.advice == doctor.READY) == works
