"""Which certificate authorities are trusted: certifi's and the system's, or those of SSL_CERT_FILE or SSL_CERT_DIR."""

import os
import ssl
from contextlib import suppress

import httpx

# The system's bundle of the usual distributions, where OpenSSL was built to look elsewhere. From truststore.
BUNDLES = (
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
)


def trusting_context() -> ssl.SSLContext:
    """A context for all connections: it reads some hundred certificates (40 ms). OSError where a variable is wrong."""
    context = httpx.create_ssl_context()  # knows certifi and the two variables
    # Python 3.13 sets it, and refuses authorities of companies that the official client takes (without keyUsage).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not _is_set("SSL_CERT_FILE", "SSL_CERT_DIR"):
        paths = ssl.get_default_verify_paths()
        for bundle in (paths.openssl_cafile, *BUNDLES):
            with suppress(OSError):  # it does not exist, or is damaged
                context.load_verify_locations(bundle)
                break
        context.load_verify_locations(capath=paths.openssl_capath)
    return context


def overlooked_variable() -> str | None:
    """The variable that names certificates for other clients, while none does for this one."""
    return None if _is_set("SSL_CERT_FILE", "SSL_CERT_DIR") else _is_set("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def _is_set(*names: str) -> str | None:
    return next(filter(os.environ.get, names), None)
