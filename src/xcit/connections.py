"""HTTP connections that fail soon if there is no network, and that never follow a redirect from https to http."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import IO, Any, TypeVar
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

Result = TypeVar("Result")

_LATE = "the server did not answer in time"


def open_answer(request: Request, *, timeout: float, patience: float) -> Any:
    """Sends a request. Returns the response, or raises an error, as `urllib.request.urlopen` does.

    Args:
        request: a request with an http, https or file URL. Environment variables such as `https_proxy` set the proxies.
        timeout: number of seconds without data from the server after which the connection counts as broken.
        patience: maximum time to establish a connection, in seconds, including the DNS lookup of the host.
    """
    # `urlopen` is not used, because it reads the environment variables for proxies only at its first call.
    return build_opener(_Connecting(patience), _SafeRedirects).open(request, timeout=timeout)


class _SafeRedirects(HTTPRedirectHandler):
    """Refuses redirects from https to an unencrypted address, because an attacker could change the data."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https" and req.type != "http":
            fp.close()
            raise URLError(f"refused, it redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Patient(HTTPConnection):
    """An HTTP connection that must be established within `patience` seconds. Afterwards, `timeout` limits each wait."""

    patience, label = 10.0, ""

    def connect(self) -> None:
        timeout, self.timeout = self.timeout, self.patience
        try:
            in_time(super().connect, self.patience)
        except OSError as error:
            raise URLError(unreached(self.label, error)) from error
        self.timeout = timeout
        self.sock.settimeout(timeout)


class _PatientHTTPS(HTTPSConnection, _Patient):
    """An HTTPS connection that must be established within `patience` seconds; see `_Patient`."""


class _Connecting(HTTPHandler, HTTPSHandler):
    """Opens `_Patient` and `_PatientHTTPS` connections, with the given patience in seconds."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connecting(_Patient, req), req)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connecting(_PatientHTTPS, req), req)

    def _connecting(self, kind: type[_Patient], request: Request) -> Any:
        host = urlsplit(f"//{request.host}").hostname
        is_proxy = request.host != urlsplit(request.full_url).netloc

        def connection(address: str, *, timeout: float) -> _Patient:
            made = kind(address, timeout=timeout)
            made.patience, made.label = self._patience, f"proxy {host}" if is_proxy else f"{host}"
            return made

        return connection


def in_time(action: Callable[[], Result], seconds: float) -> Result:
    """Runs an action in a thread and returns its result.

    Without a network, the DNS lookup of a host can take half a minute and can't be interrupted. So the thread may still
    run after the timeout.

    Raises:
        TimeoutError: if the action takes longer than `seconds`.
    """
    future: Future[Result] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    return future.result(timeout=seconds)


def unreached(host: str | None, error: BaseException) -> str:
    """Returns a line of text that says that a host was not reached, and why."""
    reason = reason_of(error)
    return f"no answer from {host}" if reason == _LATE else f"cannot reach {host}: {reason}"


def reason_of(error: BaseException) -> str:
    """Returns the reason for an error on one line, without the messages of errors that wrap the original error."""
    link: object = error
    while isinstance(link, BaseException):
        if isinstance(link, TimeoutError):
            return _LATE
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        if isinstance(link, URLError) and isinstance(link.reason, str):
            return link.reason
        link = link.reason if isinstance(link, URLError) else link.__cause__ or link.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
