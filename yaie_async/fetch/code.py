"""The code of another repository that a model names ("org/code--modeling_x.X"), fetched before the model is built."""

from contextlib import suppress
from functools import partial

from huggingface_hub.utils import validate_repo_id

from yaie_async.core.errors import CacheAccessError, HubUnavailableError, OfflineError
from yaie_async.core.log import logger
from yaie_async.core.manifest import TOKENIZER_CONFIG, Manifest, Need, check_small
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.resolution import manifest_of_choice, resolve
from yaie_async.fetch.session import Session
from yaie_async.fetch.snapshot import fetch_snapshot
from yaie_async.store.cache import RepoCache
from yaie_async.store.directory import read_object

_REVISION = "main"  # as transformers takes it
_MOST = 4  # repositories


async def fetch_code(session: Session, manifest: Manifest) -> None:
    """Put the code that a sharp manifest's configuration names into the cache, where there is consent to run it.

    Code that is cached already is used where the Hub can't be asked.

    **Cancellation:** as `fetch_snapshot`.

    **Raises:** as `manifest_of_choice`, `check_small` and `fetch_snapshot`.
    """
    if manifest.need is None or not manifest.need.code:
        return
    for repo_id in await run_owned(partial(_repositories, manifest), name="code"):
        cache = RepoCache(session.settings.cache_dir, repo_id)
        facts = {"model": manifest.model, "stage": "downloading"}
        logger.info("%s runs the code of %s", manifest.model, repo_id, extra=facts)
        had = await run_owned(partial(_has_code, cache), name="code")
        try:
            resolution = await resolve(session, cache, _REVISION, Need(weights=False, code=True))
            chosen = await manifest_of_choice(session, cache, resolution, Patterns(include=("*.py",)))
            if not chosen.complete:
                check_small(chosen.files, model=repo_id)
                # A choice of code asks for no other code first.
                await fetch_snapshot(session, cache, resolution, chosen, Meter(repo_id), partial(fetch_code, session))
        except (HubUnavailableError, OfflineError, CacheAccessError) as error:
            if not had:
                raise
            logger.warning("%s: using the cached code of %s: %s", manifest.model, repo_id, error, extra=facts)


def _repositories(manifest: Manifest) -> list[str]:
    """The other repositories whose classes the model or its tokenizer are."""
    found: dict[str, None] = {}
    for config in (manifest.config or {}, read_object(manifest.folder / TOKENIZER_CONFIG)):
        auto_map = config.get("auto_map")
        references = [*auto_map.values()] if isinstance(auto_map, dict) else []
        references += [each for value in references if isinstance(value, list) for each in value]
        for reference in references:
            if isinstance(reference, str) and "--" in reference:
                name = reference.partition("--")[0]
                with suppress(ValueError):
                    validate_repo_id(name)
                    found[name] = None
    return [name for name in found if name != manifest.model][:_MOST]


def _has_code(cache: RepoCache) -> bool:
    commit = cache.commit_of(_REVISION)
    return commit is not None and any(path.endswith(".py") for path in cache.files(commit))
