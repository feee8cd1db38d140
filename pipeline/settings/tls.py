"""Which TLS settings of a server fit together."""

from collections.abc import Iterator

from pipeline.endpoints import Tls


def tls_faults(server: str, tls: Tls, needed: str | None) -> Iterator[str]:
    """What does not fit together, for the settings whose names begin with `server`.

    `needed` is the setting that switches TLS on; None if it is on.
    """
    files = {"CA": tls.ca_file, "CERTIFICATE": tls.certificate_file, "KEY": tls.key_file}
    if needed is not None:
        # Without TLS the files would have no effect, and the operator would believe that they have.
        for name, path in files.items():
            if path is not None:
                yield f"SECKILL_{server}_{name}_FILE: needs {needed}"
        if not tls.checks_hostname:
            yield f"SECKILL_{server}_CHECK_HOSTNAME: needs {needed}"
    elif tls.key_file is not None and tls.certificate_file is None:
        yield f"SECKILL_{server}_KEY_FILE: needs SECKILL_{server}_CERTIFICATE_FILE"
    elif tls.certificate_file is not None and (fault := tls.fault()):
        yield f"SECKILL_{server}_CERTIFICATE_FILE: {fault}"
