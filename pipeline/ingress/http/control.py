"""The administration calls for live settings: what is in force, and changes, which are records of the control topic."""

import time
from typing import Any

from aiohttp import web
from pydantic import MISSING

from pipeline.control.live_settings import InvalidValue, LiveSettings, NotLive, SettingRefused, UnknownSetting
from pipeline.control.operator import write_setting
from pipeline.ingress.errors import CommandNotAcknowledged, CommandNotSent
from pipeline.ingress.http.access import author_of
from pipeline.ingress.http.admission import Admission
from pipeline.ingress.http.answers import json_answer
from pipeline.ingress.http.bodies import parse_object, read_body
from pipeline.ingress.http.operator_bodies import parse_document
from pipeline.ingress.http.operator_requests import SetSetting, UnsetSetting
from pipeline.ingress.http.problems import Kind, Problem, invalid, not_found
from pipeline.ingress.operator_sends import OperatorSends
from pipeline.kafka.producer import Sender
from pipeline.kafka.topics import Topic
from pipeline.messages.settings import SettingChange
from pipeline.settings import InForce

PATH = "/api/v1/control"
ANONYMOUS = "an administrator"
"""Who made a change, if the request does not say."""
NAME_LENGTH_MAX = 100
"""Limit for an unknown name in a problem document."""


class ControlRoutes:
    def __init__(
        self,
        in_force: InForce,
        live: LiveSettings,
        producer: Sender,
        topic: Topic,
        admission: Admission,
    ) -> None:
        self._in_force = in_force
        self._live = live
        self._producer = producer
        self._topic = topic
        self._admission = admission
        self._sends = OperatorSends("a change of a setting")

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(PATH, self.get_all, allow_head=False),
            web.get(PATH + "/{name}", self.get, allow_head=False),
            web.put(PATH + "/{name}", self.put),
            web.delete(PATH + "/{name}", self.delete),
        ]

    async def get_all(self, _: web.Request) -> web.Response:
        return json_answer(self._live.describe_all())

    async def get(self, request: web.Request) -> web.Response:
        return json_answer({**self._described(request), "version": self._live.version})

    async def put(self, request: web.Request) -> web.Response:
        before = self._described(request)
        base = self._in_force.base
        body = await read_body(request, base.body_bytes_max)
        wanted = parse_document(SetSetting, parse_object(body, base.json_depth_max))
        try:
            change = self._live.set_to(
                before["name"], wanted.value, self._by(request, wanted.by), wanted.reason, _now_ms()
            )
        except SettingRefused as refusal:
            raise _problem(refusal) from None
        return await self._written(change, change.value, before)

    async def delete(self, request: web.Request) -> web.Response:
        before = self._described(request)
        wanted = parse_document(UnsetSetting, dict(request.query))
        try:
            change = self._live.unset(before["name"], self._by(request, wanted.by), wanted.reason, _now_ms())
        except SettingRefused as refusal:
            raise _problem(refusal) from None
        return await self._written(change, before["base"], before)

    def _described(self, request: web.Request) -> dict[str, Any]:
        """The setting that the path names. Raises Problem."""
        try:
            return self._live.describe(request.match_info["name"][:NAME_LENGTH_MAX])
        except SettingRefused as refusal:
            raise _problem(refusal) from None

    def _by(self, request: web.Request, named: Any) -> str:
        return author_of(request) or (ANONYMOUS if named is MISSING else named)

    async def _written(self, change: SettingChange, value: object, before: dict[str, Any]) -> web.Response:
        """The answer, once the log has acknowledged the change. Raises Problem."""
        sending = write_setting(self._producer, self._topic, change)
        try:
            offset = await self._sends.send(sending, self._in_force.base.send_timeout_ms)
        except CommandNotSent:
            raise self._admission.unavailable(
                "the log accepts no changes at the moment; this one was not sent"
            ) from None
        except CommandNotAcknowledged:
            raise self._admission.unavailable(
                "the log did not acknowledge the change in time, so it may still take effect; check the setting"
                " before you repeat it"
            ) from None
        return json_answer({"name": change.name, "value": value, "before": before["value"], "offset": offset})


def _problem(refusal: SettingRefused) -> Problem:
    match refusal:
        case UnknownSetting():
            return not_found(str(refusal))
        case NotLive():
            return Problem(Kind.NOT_LIVE, str(refusal))
        case InvalidValue(limit=limit):
            return invalid("value", f"value: {refusal}", limit)
    raise refusal


def _now_ms() -> int:
    return int(time.time() * 1_000)
