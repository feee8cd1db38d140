"""`seckill token`: issues a trial token, for a system that requires tokens."""

import re
import time

import click

from pipeline.domain.scopes import Scope

LIFETIME_S_MAX = 30 * 24 * 3_600
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Lifetime(click.ParamType):
    """A time such as "90s", "15m", "1h" or "7d", in whole seconds."""

    name = "TIME"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", value, re.ASCII)
        lifetime_s = int(match[1]) * _UNITS_S[match[2]] if match else 0
        if not 1 <= lifetime_s <= LIFETIME_S_MAX:
            self.fail(f"{value!r} is not a time from 1s to 30d, such as 90s, 15m or 1h", param, ctx)
        return lifetime_s


@click.command()
@click.option("--user", required=True, help="Whom the token is for; with the scope purchase, the user id.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(list(map(str, Scope))),
    help="Repeatable.",
)
@click.option("--ttl", "lifetime_s", type=Lifetime(), default="1h", show_default=True)
def token(user: str, scopes: tuple[str, ...], lifetime_s: int) -> None:
    """Print a trial token, signed with the token secret of the settings (HS256)."""
    from pipeline.errors import OperatorError
    from pipeline.ingress.access.trial import trial_token
    from pipeline.process.configuration import load_settings

    try:
        signed = trial_token(load_settings(), user, scopes, int(time.time()), lifetime_s)
    except OperatorError as error:
        refused = click.ClickException(str(error))
        refused.exit_code = 2
        raise refused from error
    click.echo(signed)
