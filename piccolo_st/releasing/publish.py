"""release(): checks a model directory, shows what would change, and on request publishes it in one commit.

1. check the directory (:mod:`piccolo_st.releasing.checks`) and compare it with the remote
   (:mod:`piccolo_st.releasing.diff`); without ``push`` that is all, and nothing is written anywhere;
2. create the repository, private, and the branch, where they are missing;
3. upload what the Hub does not have and commit everything at once, on condition that the branch still is where the
   comparison saw it: a branch holds the whole release or none of it, and nobody's commit is overwritten;
4. download the commit afresh; compare every file's hash, and the embeddings;
5. set the tag; make the repository public if that was asked for.

Every request has a timeout, all together a deadline (:mod:`piccolo_st.hub`). Whatever fails, the same command
goes on from there: what is there already is recognised and not sent again. The token is huggingface_hub's own affair
(``hf auth login`` or HF_TOKEN) and no part of any message.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError

from piccolo_st.errors import InputError
from piccolo_st.hub import SILENCE, deadline, hub_reason
from piccolo_st.releasing.checks import check_release, embed
from piccolo_st.releasing.diff import RemoteDiff, describe_movement, diff_remote, file_changes, remote_files, sha256


class ReleaseError(InputError):
    """A release that cannot be made, or was interrupted; the message says what the Hub holds now and what to do."""


@dataclass(frozen=True)
class ReleaseOptions:
    """What a release is to do.

    Attributes:
        push: publish; otherwise show what publishing would do.
        private: whether the repository stays private. A new one is created private in any case and made public, if
            asked for, once the release is verified; a public one is only released to with ``private=False``.
        revision: the branch.
        create_pr: open a pull request on the branch instead of committing to it; then no tag is set and the
            repository stays as private as it is.
        tag: a tag for the commit, such as "v1.0". A tag is never moved.
        message: the commit's title.
        parent: the commit at which the branch was looked at; the release is refused if it has moved since. Without it
            that is the moment of the call.
        include: patterns of files to publish beyond those of a model.
        exclude: patterns of files to leave out.
        delete: patterns of remote files to delete that the release does not have.
        foreign_results: publish a card whose results name no model they were measured on.
        adapter: publish an adapter of PEFT as it is, for its base, instead of a whole model.
        deadline: seconds that all requests may take together; by default 600, and 4 for every MB of the release
            (it is sent and read back). hf-xet's transfers are not cut short by it.
        timeout: seconds in which the Hub must connect, take or send something.
        endpoint: the Hub; HF_ENDPOINT or huggingface.co by default.
        say: receives every message.
    """

    push: bool = False
    private: bool = True
    revision: str = "main"
    create_pr: bool = False
    tag: str | None = None
    message: str | None = None
    parent: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    delete: Sequence[str] = ()
    foreign_results: bool = False
    adapter: bool = False
    deadline: float | None = None
    timeout: float = SILENCE
    endpoint: str | None = None
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Release:
    """What a release came to.

    Attributes:
        diff: the comparison with the remote before anything was sent.
        commit: the commit that holds the release; None after a dry run.
        pr_url: the pull request's page, where one was opened.
        tag: the tag that stands on the commit, if one was asked for.
    """

    diff: RemoteDiff
    commit: str | None = None
    pr_url: str | None = None
    tag: str | None = None


def release(model_dir: str | Path, repo_id: str, options: ReleaseOptions | None = None, **changes: Any) -> Release:
    """Check a saved model and, with ``push``, publish it on the Hub; see the module docstring.

    Args:
        model_dir: a model saved with its card.
        repo_id: where it goes, "org/name".
        options: what to do; nothing is sent by default.
        **changes: fields of the options by name: ``release(folder, "org/name", push=True, tag="v1.0")``.

    Raises:
        ReleaseError: a check failed, the remote moved, the Hub refused or failed.
        InputError: ``model_dir`` is no directory with files to publish.

    Example:
        >>> print(check_release("runs/quickstart/model", "org/name"))  # what comes first
        ok   files
        ok   portable
        ok   loads
        ok   embeddings
        FAIL card
        ok   results
        >>> release("runs/quickstart/model", "org/name")
        Traceback (most recent call last):
        ...
        piccolo_st.releasing.publish.ReleaseError: runs/quickstart/model is not ready to be released: ...
    """
    options = replace(options or ReleaseOptions(), **changes)
    if options.create_pr and options.tag:
        raise ReleaseError("a pull request gets no tag; release with the tag after it is merged")
    found = check_release(
        model_dir,
        repo_id,
        include=options.include,
        exclude=options.exclude,
        foreign_results=options.foreign_results,
        adapter=options.adapter,
    )
    options.say(f"{found}\n")
    if found.problems:
        raise ReleaseError(f"{model_dir} is not ready to be released: {'; '.join(found.problems)}")
    return publish_folder(Path(model_dir), found.files, repo_id, options)


def publish_folder(
    folder: Path, files: Sequence[str], repo_id: str, options: ReleaseOptions, repo_type: str = "model"
) -> Release:
    """Steps 1 to 5 of the module docstring for a folder that is checked already.

    Args:
        folder: where the files are.
        files: their paths below it.
        repo_id: where they go.
        options: see :class:`ReleaseOptions`.
        repo_type: "model", or "space" for a gradio Space, whose embeddings are not compared.
    """
    size = sum((folder / name).stat().st_size for name in files)
    seconds = 600 + 4e-6 * size if options.deadline is None else options.deadline
    with deadline(seconds, options.timeout):
        return _publish(folder, files, repo_id, options, repo_type)


def _publish(folder: Path, files: Sequence[str], repo_id: str, options: ReleaseOptions, repo_type: str) -> Release:
    api, say, revision, tag = HfApi(endpoint=options.endpoint), options.say, options.revision, options.tag

    def look() -> RemoteDiff:
        return diff_remote(
            api, folder, files, repo_id, revision=revision, tag=tag, delete=options.delete, repo_type=repo_type
        )

    untouched = f"Nothing on {revision} of {repo_id} was changed."
    with _explained(f"looking at {repo_id}", untouched):
        diff = first = look()
        say(str(diff))
        if options.parent and not diff.done and not (diff.head or "").startswith(options.parent):
            raise ReleaseError(f"{describe_movement(api, diff, options.parent, diff.head)}. {untouched}")
    if diff.tagged and not (diff.done and diff.tagged == diff.head):
        raise ReleaseError(f"the tag {tag} stands on {diff.tagged[:8]} already; choose another one. {untouched}")
    if options.private and diff.private is False:
        raise ReleaseError(
            f"{repo_id} is public, so releasing there publishes the {repo_type}; say so with --public (private=False). "
            f"{untouched}"
        )
    if not options.push:
        at = f" --parent {diff.head}" if diff.head else ""
        say(f"Dry run: nothing was sent. To release, run the same command with --push{at}")
        return Release(first)

    with _explained(f"preparing {repo_id}", untouched):
        if not diff.exists:
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=True, exist_ok=True, space_sdk=sdk)
            diff = look()
        if diff.head is None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
            diff = look()
    commit, pr_url = _commit(api, diff, look, folder, options)
    _finish(api, diff, folder, commit, options)
    say(_farewell(diff, commit, pr_url, options))
    return Release(first, commit, pr_url, tag)


def _finish(api: HfApi, diff: RemoteDiff, folder: Path, commit: str, options: ReleaseOptions) -> None:
    """Steps 4 and 5: what follows on the commit."""
    tag, publishes = options.tag, not (options.private or options.create_pr)
    left = [*(["the tag"] if tag else []), *(["making it public"] if publishes else [])]
    where = "The pull request" if options.create_pr else diff.revision
    held = f"{where} holds the whole release, commit {commit[:8]}. "
    with _explained("verifying the commit", f"{held}Still to do: {', '.join(['verifying it', *left])}."):
        _verify(api, diff, folder, commit)
        embeddings = ", same embeddings" if diff.repo_type == "model" else ""
        options.say(f"verified: {len(diff.files)} files of commit {commit[:8]} downloaded, same hashes{embeddings}")
    if tag and diff.tagged != commit:
        with _explained(f"setting the tag {tag}", f"{held}It is verified. Still to do: {', '.join(left)}."):
            _set_tag(api, diff.repo_id, tag, commit)
    if publishes and diff.private:
        with _explained(f"making {diff.repo_id} public", f"{held}It is verified. Still to do: making it public."):
            api.update_repo_settings(diff.repo_id, repo_type=diff.repo_type, private=False)


def _commit(
    api: HfApi, diff: RemoteDiff, look: Callable[[], RemoteDiff], folder: Path, options: ReleaseOptions
) -> tuple[str, str | None]:
    """Commit what differs, or find that it is there already; returns the commit and the pull request's page."""
    if diff.done and diff.head is not None:
        return diff.head, None
    if options.create_pr:
        with _explained("looking for a pull request of this release", f"Nothing on {diff.repo_id} was changed."):
            found = _find_pull_request(api, diff, folder)
        if found is not None:
            return found
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(path, str(folder / path)) for path in diff.sent),
        *(CommitOperationDelete(path) for path in diff.deleted),
    ]
    unsure = f"Whether it went through is not known; nothing but the whole release can be on {diff.revision}."
    with _explained("the commit", unsure):
        try:
            info = api.create_commit(
                diff.repo_id,
                operations,
                repo_type=diff.repo_type,
                commit_message=options.message or f"Release {diff.repo_id}",
                revision=diff.revision,
                create_pr=options.create_pr,
                parent_commit=diff.head,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == 412:
                now = look()
                moved = describe_movement(api, diff, diff.head, now.head)
                raise ReleaseError(
                    f"refused: {moved}. Nothing was overwritten; look at the change, then release again"
                ) from error
            raise
    return info.oid, info.pr_url


def _find_pull_request(api: HfApi, diff: RemoteDiff, folder: Path) -> tuple[str, str] | None:
    """An open pull request that already holds the release: the commit and the page."""
    files = [file.path for file in diff.files]
    for ref in api.list_repo_refs(diff.repo_id, include_pull_requests=True).pull_requests or []:
        remote = remote_files(api, diff.repo_id, ref.target_commit)
        same = all(file.change == "unchanged" for file in file_changes(folder, files, remote))
        if same and not set(diff.deleted) & set(remote):
            return ref.target_commit, f"{api.endpoint}/{diff.repo_id}/discussions/{ref.name}"
    return None


def _verify(api: HfApi, diff: RemoteDiff, folder: Path, commit: str) -> None:
    """Download the commit into an empty directory and compare it with what was to be released."""
    files = [file.path for file in diff.files]
    with tempfile.TemporaryDirectory(prefix="piccolo_st_verify_") as fresh:
        snapshot_download(
            diff.repo_id,
            repo_type=diff.repo_type,
            revision=commit,
            local_dir=fresh,
            allow_patterns=[glob.escape(path) for path in files],
            endpoint=api.endpoint,
        )
        wrong = [path for path in files if not _same_file(folder / path, Path(fresh) / path)]
        if wrong:
            raise ReleaseError(f"commit {commit[:8]} came back different from what was sent: {', '.join(wrong)}")
        if diff.repo_type == "model" and not np.array_equal(embed(fresh), embed(folder), equal_nan=True):
            raise ReleaseError(f"commit {commit[:8]} has every file as sent, but gives other embeddings")


def _same_file(sent: Path, received: Path) -> bool:
    return received.is_file() and sha256(sent) == sha256(received)


def _set_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Set the tag, and see where it stands: "it exists already" is also what the Hub says of somebody else's."""
    api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    found = next((ref.target_commit for ref in api.list_repo_refs(repo_id).tags if ref.name == tag), None)
    if found is not None and found != commit:
        raise ReleaseError(f"somebody set the tag {tag} on {found[:8]} meanwhile; choose another one")
    if found is None:
        raise ReleaseError(f"the Hub did not set the tag {tag}. Run the same command again")


def _farewell(diff: RemoteDiff, commit: str, pr_url: str | None, options: ReleaseOptions) -> str:
    where = pr_url or f"{diff.revision} of {diff.repo_id}"
    private = options.private or (options.create_pr and diff.private)
    tag = [f"tag {options.tag}"] if options.tag else []
    state = [f"commit {commit[:8]}", *tag, "private" if private else "public"]
    released = f"Released: {where}, {', '.join(state)}."
    if diff.repo_type == "space":
        return f"{released} The Hub builds the Space and starts it."
    at = options.tag or (commit if pr_url or diff.revision != "main" else None)
    argument = f', revision="{at}"' if at else ""
    if at and options.adapter:  # sentence-transformers looks there for the other files alone
        argument += f', model_kwargs={{"adapter_kwargs": {{"revision": "{at}"}}}}'
    return (
        f"{released}\n\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{diff.repo_id}"{argument})'
    )


@contextmanager
def _explained(step: str, state: str) -> Iterator[None]:
    """Turn whatever the Hub or the network raises into a ReleaseError that says the step, the reason and the state."""
    try:
        yield
    except ReleaseError:
        raise
    except Exception as error:
        raise ReleaseError(
            f"{step} failed: {hub_reason(error)}. {state} Run the same command again to complete it"
        ) from error
