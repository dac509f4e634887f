import stat
from pathlib import Path

import pytest

from core.jobs.devices import all_requests, list_devices, requests_for

ROWS = "0, GPU-aaa, NVIDIA H200, 143771, 140000\n1, GPU-bbb, NVIDIA H200, 143771, [N/A]\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``nvidia-smi`` that knows two GPUs, before everything else on the path."""
    program = tmp_path / "nvidia-smi"
    (tmp_path / "rows").write_text(ROWS)
    program.write_text(f"#!/bin/sh\n/bin/cat {tmp_path / 'rows'}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for variable in ("TESSERA_CPU_JOBS", "TESSERA_GPU_JOBS"):
        monkeypatch.delenv(variable, raising=False)
    return program


def test_gpus_and_the_cpu(smi: Path) -> None:
    first, second, cpu = list_devices()
    assert (first.name, first.visible, first.argument, first.memory_gib) == ("cuda:0", "0", "cuda", 140.4)
    assert second.free_gib is None
    assert (cpu.name, cpu.visible, cpu.argument, cpu.slots) == ("cpu", "", "cpu", 1)


def test_a_gpu_takes_as_many_jobs_as_the_cores_serve(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, jobs in ((64, 4), (6, 3), (1, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert list_devices()[0].slots == jobs
    monkeypatch.setenv("TESSERA_GPU_JOBS", "8")
    assert [device.slots for device in list_devices()] == [8, 8, 1]
    (smi.parent / "rows").write_text("0, GPU-aaa, Some GPU, [N/A], [N/A]\n")
    assert list_devices()[0].slots == 1  # of unknown memory


def test_auto_means_a_gpu_where_there_is_one(smi: Path) -> None:
    devices = list_devices()
    assert requests_for(devices[0], devices) == ["auto", "cuda", "cuda:0"]
    assert requests_for(devices[-1], devices) == ["cpu"]
    assert "cuda:2" not in all_requests(devices)


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["cuda:1"]), ("GPU-aaa", ["cuda:0"]), ("", []), ("-1", []), ("1,0", ["cuda:0", "cuda:1"])],
)
def test_only_visible_gpus_are_given_away(
    smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name for device in list_devices()] == [*names, "cpu"]


def test_parts_of_a_gpu_are_devices_of_their_own(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-x,MIG-y")
    assert [(d.name, d.visible) for d in list_devices()][:2] == [("cuda:0", "MIG-x"), ("cuda:1", "MIG-y")]


def test_without_nvidia_smi_the_cpu_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TESSERA_CPU_JOBS", "3")
    (cpu,) = list_devices()
    assert cpu.slots == 3 and cpu.share == pytest.approx(1 / 3)
    assert all_requests([cpu]) == ["auto", "cpu"]
    monkeypatch.setenv("TESSERA_CPU_JOBS", "many")
    assert list_devices()[0].slots == 1


def test_a_failing_nvidia_smi_is_not_taken_for_a_machine_without_gpu(smi: Path) -> None:
    import subprocess

    smi.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(subprocess.CalledProcessError):
        list_devices()
