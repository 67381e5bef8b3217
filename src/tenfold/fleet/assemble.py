"""From a checked configuration to a service: sources are found, limits and devices put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenfold.core.errors import ConfigError
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings, ModelSetup
from tenfold.fleet.catalogue import Catalogue, entries_of
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.store import Store
from tenfold.fleet.tenant_file import TenantFile, default_path
from tenfold.fleet.tenants import Tenants
from tenfold.fleet.workers import LocalWorker, Worker
from tenfold.scheduling.admission import AdmissionController, Limits

if TYPE_CHECKING:
    from tenfold.core.config import LoadedConfig


def find_source(name: str, source: str | None = None, store: Store | None = None) -> ModelSource:
    """Where a model's files are on this machine. Raises PullError if they must be fetched."""
    return source_of(ModelSetup(name, source or name), store or Store())


def source_of(setup: ModelSetup, store: Store) -> ModelSource:
    """A configured model with its files found in the store."""
    path = store.path(setup.source)
    known = setup.source in store.catalogue
    return ModelSource(
        name=setup.name,
        path=str(path),
        options=ModelOptions(
            setup.context_length,
            setup.kv_limit_bytes,
            setup.policy,
            setup.kv_dtype,
            setup.speculation,
            ttft_target=setup.ttft_target,
            tpot_target=setup.tpot_target,
            pinned=setup.pin,
            ttl=setup.ttl,
            floor_bytes=setup.floor_bytes,
            evict_cost=setup.evict_cost,
            asleep=setup.asleep,
        ),
        pinned=setup.pin,
        licence=store.entry(setup.source).licence.name if known else "",
    )


def device_settings(device: DeviceSettings, store: Store) -> DeviceSettings:
    """The device with a place for packed weights: in the store unless it has one."""
    return replace(device, cache_dir=device.cache_dir or str(store.root))


def build_tenants(loaded: LoadedConfig) -> Tenants:
    """The book of clients: the config's, and over them what was changed live. Raises ConfigError
    where the two do not fit together."""
    path = Path(loaded.config.server.state or default_path(loaded.environment or None))
    return Tenants(loaded.to_clients(), loaded.to_groups(), file=TenantFile(path))


class Workers(NamedTuple):
    """What each worker is set up with, and how it is made."""

    devices: list[DeviceSettings]
    make: Callable[[DeviceSettings], Worker]


def workers_of(loaded: LoadedConfig) -> Workers:
    """Processes of this machine, or actors of the Ray cluster that is configured, which is joined.
    Raises ConfigError where that cannot be."""
    device = loaded.config.device
    if not device.ray:
        return Workers(loaded.to_devices(), LocalWorker)
    if "%" in str(device.memory):
        raise ConfigError(
            f"device.memory = {device.memory!r} would be a part of this machine's memory; with Ray "
            "give bytes, or nothing for 60 % of what each node has free"
        )
    from tenfold.fleet.ray_workers import RayCluster

    cluster = RayCluster(device.ray, loaded.to_device_settings(), device.workers)
    return Workers(cluster.devices(), cluster.worker)


def build_service(
    loaded: LoadedConfig,
    tenants: Tenants,
    make_worker: Callable[[DeviceSettings], Worker] | None = None,
) -> Service:
    """The service of one server. Every configured model must be in the store already. Shares and
    limits follow ``tenants``. ``make_worker``: in place of what the configuration asks for."""
    workers = Workers(loaded.to_devices(), make_worker) if make_worker else workers_of(loaded)
    store = Store(catalogue=Catalogue(entries_of(loaded.config.catalogue)))
    queue = loaded.to_queue_settings()
    service = Service(
        [device_settings(device, store) for device in workers.devices],
        [source_of(setup, store) for setup in loaded.to_models()],
        admission=AdmissionController(Limits.from_settings(queue)),
        routing=loaded.to_routing(),
        placement=loaded.to_placement(),
        make_worker=workers.make,
        find_source=lambda name, source: find_source(name, source, store),
    )

    def follow() -> None:
        clients = tenants.clients.values()
        service.set_shares(tenants.shares())
        service.limiter.set_limits(clients, tenants.groups.values())
        service.admission.set_limits(Limits.from_settings(queue, clients))

    tenants.listen(follow)
    return service
