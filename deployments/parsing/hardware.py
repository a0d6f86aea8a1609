"""Reads this machine's CPU, memory and GPUs, and how busy they are. Sizes in bytes, utilisation in percent."""

import platform
from typing import Any

import psutil
import pynvml

from deployments.machine import available_memory, cpu_quota, memory_limit, usable_cores


def node_hardware() -> dict[str, Any]:
    """Returns the hardware of the node that this runs on; `gpus` is empty where there is no NVIDIA driver.

    Beside the machine's processors and memory, the part of them that this service may use: see machine.py.
    """
    memory = psutil.virtual_memory()
    return {
        "hostname": platform.node(),
        "cpu_count": psutil.cpu_count() or 1,
        "cpu_utilization": psutil.cpu_percent(interval=0.1),
        "memory_total": memory.total,
        "memory_free": memory.available,
        "usable_cores": usable_cores(),
        "cpu_quota": cpu_quota(),
        "memory_limit": memory_limit(),
        "memory_available": available_memory(),
        "gpus": _gpus(),
    }


def _gpus() -> list[dict[str, Any]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(device: Any) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
    try:
        utilization = pynvml.nvmlDeviceGetUtilizationRates(device)
        compute_percent, memory_percent = utilization.gpu, utilization.memory
    except pynvml.NVMLError:
        # A slice of a GPU (MIG, vGPU) does not measure its utilisation.
        compute_percent, memory_percent = None, None
    return {
        "id": pynvml.nvmlDeviceGetUUID(device),
        "name": pynvml.nvmlDeviceGetName(device),
        "memory_total": memory.total,
        "memory_free": memory.free,
        "major": major,
        "minor": minor,
        "utilization_compute": compute_percent,
        "utilization_memory": memory_percent,
    }
