"""LocalHub, an ASGI application with one method per endpoint of the Hub's protocol."""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from yaie_async.localhub import api, errors
from yaie_async.localhub.access_control import AccessControl
from yaie_async.localhub.blob_id import BlobIds
from yaie_async.localhub.body import file_response
from yaie_async.localhub.limiter import Limiter
from yaie_async.localhub.models import FileChanged, ModelMissing, RevisionMissing, Snapshot, Unreadable, models_in
from yaie_async.localhub.request_body import requested_paths
from yaie_async.localhub.route import Route, cdn_path, parse_route
from yaie_async.localhub.signed_url import UrlSigner

# Listings share one core, or wait for a network file system. The default threads are left to bodies.
_LISTING = Limiter("listing", 4)


class LocalHub:
    """A read-only Hub that serves a directory of models, or an HF cache, as an ASGI application.

    As on the Hub, the files of a gated model are protected, and its description is public.

    Attributes:
        cdn: an origin such as `http://127.0.0.2:8001`, at which this application must also be served. Requests for
            LFS files are redirected to signed URLs there. None serves LFS files in place.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        tokens: Iterable[str] = (),
        gated: Iterable[str] | Mapping[str, Collection[str]] = (),
        cdn: str | None = None,
        url_lifetime: float = 3600.0,
        page_size: int = 1000,
    ) -> None:
        """Serve the models under `root`.

        Args:
            root: a folder of models (`name/` or `org/name/`), or the root of an HF cache (with `models--*` folders).
            tokens: the valid access tokens. If there are any, each request needs one of them.
            gated: the gated models, or a mapping from each to the tokens that have access.
            cdn: see the attribute.
            url_lifetime: lifetime of a signed URL, in seconds.
            page_size: maximum number of entries in one page of a tree.

        Raises:
            NotADirectoryError: `root` is not a directory.
        """
        self.cdn = cdn
        self._models = models_in(Path(root))
        self._access = AccessControl(tokens, gated)
        self._signer = UrlSigner(url_lifetime)
        self._page_size = page_size
        self._blob_ids = BlobIds()

    def names(self) -> list[str]:
        """Return the names of the models. Blocks: reads the disk."""
        return self._models.names()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request.

        **Cancellation:** control returns when the current read or hash in a thread has ended.

        **Raises:** NotImplementedError for another scope than HTTP: for a lifespan, ASGI defines that this means "not
        supported". OSError, if the disk can't be read.
        """
        if scope["type"] != "http":
            raise NotImplementedError(f"LocalHub does not support {scope['type']}.")
        if scope["method"] == "HEAD":
            send = _headers_only(send)
        try:
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)
        except errors.HubError as error:
            await error.response()(scope, receive, send)
        except FileChanged as error:
            await errors.file_changed(str(error)).response()(scope, receive, send)
        except Unreadable as error:
            await errors.unreadable(str(error)).response()(scope, receive, send)
        except ClientDisconnect:
            return

    async def _answer(self, request: Request) -> Response:
        raw_path = _raw_path(request.scope)
        route = parse_route(raw_path)
        if route is None:
            raise errors.not_found()
        if request.method not in (("POST",) if route.kind == "paths-info" else ("GET", "HEAD")):
            raise errors.HubError(405, "Method not allowed")
        if route.kind == "cdn":
            return await self._serve_cdn(request, raw_path, route)
        token = self._access.authenticate(request.headers.get("authorization"))
        if route.kind == "whoami":
            if token is None:
                raise errors.HubError(401, "Invalid username or password.")
            return JSONResponse(api.whoami())
        try:
            snapshot = await self._snapshot(route)
        except ModelMissing:
            raise errors.repo_not_found(authenticated=token is not None) from None
        except RevisionMissing as missing:
            raise errors.revision_not_found(str(missing)) from None
        if route.kind == "info":
            return await self._info(request, snapshot)
        if route.kind == "tree":
            return await self._tree(request, snapshot, route.path, raw_path)
        if route.kind == "paths-info":
            return await self._paths_info(request, snapshot)
        self._access.authorize(route.model, token)
        return await self._resolve(request, snapshot, route.path)

    async def _snapshot(self, route: Route) -> Snapshot:
        look = partial(self._models.snapshot, route.model, route.revision)
        if route.kind in ("resolve", "cdn"):
            look = partial(self._models.with_file, route.model, route.revision, route.path)
        return await anyio.to_thread.run_sync(look, limiter=_LISTING.get())

    async def _info(self, request: Request, snapshot: Snapshot) -> Response:
        query = request.query_params
        blob_ids = await self._blob_ids.of(*snapshot.files.values()) if query.get("blobs") == "true" else None
        info = api.model_info(snapshot, blob_ids, gated=self._access.is_gated(snapshot.model))
        if wanted := query.getlist("expand"):
            info = {key: info[key] for key in ("_id", "id", *wanted) if key in info}
        return JSONResponse(info)

    async def _tree(self, request: Request, snapshot: Snapshot, folder: str, raw_path: str) -> Response:
        query = request.query_params
        try:
            paths = api.entries_below(snapshot, folder, recursive=query.get("recursive") == "true")
            after = api.decode_cursor(query.get("cursor", ""))
            limit = int(query.get("limit", self._page_size))
        except KeyError:
            raise errors.entry_not_found(snapshot.commit) from None
        except ValueError:
            raise errors.HubError(400, "Invalid cursor or limit") from None
        limit = min(max(limit, 1), self._page_size)
        paths = [path for path in paths if path > after]
        page = await self._entries(snapshot, paths[:limit], expand=query.get("expand") == "true")
        response = JSONResponse(page)
        if len(paths) > limit:
            url = request.url.replace(path=raw_path).include_query_params(
                limit=limit, cursor=api.encode_cursor(paths[limit - 1])
            )
            response.headers["Link"] = f'<{url}>; rel="next"'
        return response

    async def _paths_info(self, request: Request, snapshot: Snapshot) -> Response:
        paths, expand = await requested_paths(request)
        known = api.folders_of(snapshot.files).union(snapshot.files)
        return JSONResponse(
            await self._entries(
                snapshot, [path for path in paths if isinstance(path, str) and path in known], expand=expand
            )
        )

    async def _entries(self, snapshot: Snapshot, paths: list[str], *, expand: bool) -> list[api.Json]:
        blob_ids = await self._blob_ids.of(*(snapshot.files[path] for path in paths if path in snapshot.files))
        return [
            api.tree_file(snapshot.files[path], blob_ids[path], snapshot.commit, expand=expand)
            if path in blob_ids
            else api.tree_folder(path, snapshot.commit, expand=expand)
            for path in paths
        ]

    async def _resolve(self, request: Request, snapshot: Snapshot, path: str) -> Response:
        file = snapshot.files.get(path)
        if file is None:
            raise errors.entry_not_found(snapshot.commit)
        blob_id = (await self._blob_ids.of(file))[file.path]
        headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{blob_id.etag}"'}
        if blob_id.sha256:
            headers |= {"X-Linked-Etag": f'"{blob_id.sha256}"', "X-Linked-Size": str(file.size)}
            if self.cdn is not None:
                # As on the Hub, the ETag of the redirect is that of the LFS pointer. A client that uses it as the
                # file's etag fails here too.
                signed = self._signer.sign(cdn_path(snapshot.model, snapshot.commit, path))
                headers |= {
                    "ETag": f'"{blob_id.oid}"',
                    "Location": self.cdn + signed,
                    "Accept-Ranges": "bytes",
                }
                return Response(status_code=302, headers=headers)
        return file_response(request, file, headers)

    async def _serve_cdn(self, request: Request, raw_path: str, route: Route) -> Response:
        """Serve the file of a signed URL. Like a CDN, it checks no token and sends none of the Hub's headers."""
        if not self._signer.is_valid(raw_path, request.query_params):
            return Response("AccessDenied", status_code=403)
        try:
            snapshot = await self._snapshot(route)
            file = snapshot.files[route.path]
        except LookupError:
            return Response("NoSuchKey", status_code=404)
        blob_id = (await self._blob_ids.of(file))[file.path]
        etag = hashlib.sha256(f"cdn {blob_id.etag}".encode()).hexdigest()[:32]
        return file_response(request, file, {"ETag": f'"{etag}"'})


def _raw_path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")
    # `raw_path` is optional in ASGI, and some servers include the query.
    return quote(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")


def _headers_only(send: Send) -> Send:
    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_headers
