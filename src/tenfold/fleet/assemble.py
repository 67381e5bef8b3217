"""From a checked configuration to a service: sources are found, limits and devices put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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


def build_service(
    loaded: LoadedConfig,
    tenants: Tenants,
    make_worker: Callable[[DeviceSettings], Worker] = LocalWorker,
) -> Service:
    """The service of one server. Every configured model must be in the store already. Shares and
    limits follow ``tenants``."""
    store = Store(catalogue=Catalogue(entries_of(loaded.config.catalogue)))
    queue = loaded.to_queue_settings()
    service = Service(
        [device_settings(device, store) for device in loaded.to_devices()],
        [source_of(setup, store) for setup in loaded.to_models()],
        admission=AdmissionController(Limits.from_settings(queue)),
        routing=loaded.to_routing(),
        make_worker=make_worker,
        find_source=lambda name, source: find_source(name, source, store),
    )

    def follow() -> None:
        clients = tenants.clients.values()
        service.set_shares(tenants.shares())
        service.limiter.set_limits(clients, tenants.groups.values())
        service.admission.set_limits(Limits.from_settings(queue, clients))

    tenants.listen(follow)
    return service
