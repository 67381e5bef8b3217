"""From a device's name to the device: the CPU's, or a GPU's, imported when asked for."""

from __future__ import annotations

from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings
from tenfold.engine.device import Device


def open_device(settings: DeviceSettings) -> Device:
    """The device that ``settings.name`` names: "cuda:N", or any other name for the CPU.

    Raises ConfigError where it cannot be used."""
    if settings.name.partition(":")[0] == "cuda":
        from tenfold.engine.cuda_device import CudaDevice

        return CudaDevice(settings)
    if settings.backend == "cuda":
        raise ConfigError(
            f"device {settings.name} is a CPU, so device.backend cannot be cuda; for a GPU, set "
            "device.name to cuda:0"
        )
    return Device(settings)
