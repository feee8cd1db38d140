"""Builds the aiohttp applications of the three listeners from the parts of an ingress."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from pipeline.ingress.flow_control.client_limits import ClientLimits
from pipeline.ingress.http import administration
from pipeline.ingress.http.access import Access
from pipeline.ingress.http.administration import AdministrationRoutes
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.buyers import Buyers
from pipeline.ingress.http.connections import Gate
from pipeline.ingress.http.control import ControlRoutes
from pipeline.ingress.http.cors import Cors
from pipeline.ingress.http.health import HealthRoutes
from pipeline.ingress.http.host_names import require_local_name
from pipeline.ingress.http.openapi import OPENAPI_PATH, openapi_document
from pipeline.ingress.http.polling import PollingRoutes
from pipeline.ingress.http.product_figures import ProductFigures
from pipeline.ingress.http.purchases import PurchaseRoutes
from pipeline.ingress.http.rate_limits import AddressGate
from pipeline.ingress.http.shedding import Doorkeeper
from pipeline.ingress.http.shortcut import shortcut
from pipeline.ingress.http.stats import StatsRoutes
from pipeline.ingress.http.tickets import TicketRoutes
from pipeline.ingress.operator_commands import OperatorCommands
from pipeline.ingress.parts import Parts


class PublicApplication(NamedTuple):
    """`in_front` puts the purchase shortcut and CORS in front of the handler of the application's server."""

    app: web.Application
    in_front: Callable[[Handler], Handler]
    doorkeeper: Doorkeeper


class Applications:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.health = HealthRoutes(
            *(parts.health_store, parts.commits, parts.ends, parts.feed, parts.rates),
            *(parts.control, parts.access, parts.in_force),
        )

    def public(self, gate: Gate) -> PublicApplication:
        """`gate` is that of the listener, for the statistics."""
        parts, in_force = self._parts, self._parts.in_force
        limits = ClientLimits(in_force)
        addresses = AddressGate(limits, in_force)
        admission = Admission(in_force, addresses)
        purchases = self._purchases(limits)
        polling = PollingRoutes(in_force, parts.decisions, admission)
        stats = StatsRoutes(parts, self._figures(), polling, admission, gate, limits, addresses)
        app = self._application(admission)
        for routes in (purchases, polling, stats, self.health):
            app.add_routes(routes.routes())
        app.add_routes([web.get(OPENAPI_PATH, openapi_document(parts.settings)), *self._tickets()])
        app.add_routes(
            self._administration(admission) if parts.settings.admin_on_public else administration.refusals()
        )
        tokens = parts.access.tokens
        calls: Mapping[str, Handler] = purchases.calls()
        if tokens is not None:
            calls = Access(tokens).guard(calls)
        in_front = partial(shortcut, calls, admission)
        origins = parts.settings.accepted_origins()
        cors = Cors(origins, admission) if origins else None
        doorkeeper = Doorkeeper(
            *(limits, parts.saturation, parts.queues, addresses, admission, parts.commits.partitions),
            knows_users=tokens is None,
            cors=cors,
        )
        if cors is None:
            return PublicApplication(app, in_front, doorkeeper)
        app.on_response_prepare.append(cors.before_stream)
        return PublicApplication(app, lambda handler: cors.in_front_of(in_front(handler)), doorkeeper)

    def administration(self) -> web.Application:
        admission = Admission(self._parts.in_force)
        app = self._application(admission)
        if self._parts.access.tokens is None:
            app.middlewares.append(require_local_name)
        app.add_routes(self._administration(admission))
        return app

    def health_only(self) -> web.Application:
        app = web.Application(middlewares=[Admission(self._parts.in_force).middleware()])
        app.add_routes(self.health.routes())
        return app

    def _application(self, admission: Admission) -> web.Application:
        """An application without routes: what every request to it passes through."""
        middlewares = [admission.middleware()]
        if self._parts.access.tokens is not None:
            middlewares.append(Access(self._parts.access.tokens).middleware())
        return web.Application(middlewares=middlewares, client_max_size=self._parts.settings.body_bytes_max)

    def _administration(self, admission: Admission) -> list[web.RouteDef]:
        parts, in_force = self._parts, self._parts.in_force
        commands = OperatorCommands(
            in_force, parts.producer, parts.topics.requests.name, parts.commits, parts.decisions
        )
        sales = AdministrationRoutes(in_force, commands, self._figures())
        live = ControlRoutes(in_force, parts.live, parts.producer, parts.topics.control, admission)
        return [*sales.routes(), *live.routes()]

    def _purchases(self, limits: ClientLimits) -> PurchaseRoutes:
        parts, access = self._parts, self._parts.access
        is_open = access.tokens is None and access.tickets is None
        return PurchaseRoutes(parts, limits, None if is_open else Buyers(access.tickets))

    def _tickets(self) -> list[web.RouteDef]:
        parts = self._parts
        if parts.access.tickets is None:
            return []
        partitions = parts.topics.requests.partitions
        return TicketRoutes(
            parts.settings, parts.access.tickets, parts.store, parts.rates, parts.refusals, partitions
        ).routes()

    def _figures(self) -> ProductFigures:
        parts = self._parts
        return ProductFigures(
            *(parts.store, parts.decisions, parts.queues, parts.rates, parts.refusals),
            parts.topics.requests.partitions,
        )
