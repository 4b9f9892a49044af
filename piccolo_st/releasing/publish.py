"""release(): checks a model directory, shows what would change, and on request publishes it in one commit.

1. check the directory (:mod:`piccolo_st.releasing.checks`) and compare it with the remote
   (:mod:`piccolo_st.releasing.diff`); without ``push`` that is all, and nothing is written anywhere;
2. create the repository, private, and the branch, where they are missing;
3. upload what the Hub does not have and commit everything at once, on condition that the branch still is where the
   comparison saw it: a branch holds the whole release or none of it, and nobody's commit is overwritten;
4. download the commit afresh; compare every file's hash, and the embeddings;
5. set the tag; make the repository public if that was asked for.

Whatever fails, the same command goes on from there: what is there already is recognised and not sent again. The
token is huggingface_hub's own affair (``hf auth login`` or HF_TOKEN) and no part of any message.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from piccolo_st.modeling import release_files
from piccolo_st.releasing.checks import check_release, embed
from piccolo_st.releasing.diff import Plan, compare, describe_movement, make_plan, remote_files, sha256
from piccolo_st.releasing.push import hub_reason


class ReleaseError(InputError):
    """A release that cannot be made, or was interrupted; the message says what the Hub holds now and what to do."""


@dataclass(frozen=True)
class Release:
    """What a release came to.

    Attributes:
        plan: the comparison with the remote before anything was sent.
        commit: the commit that holds the release; None after a dry run.
        pr_url: the pull request's page, where one was opened.
        tag: the tag that stands on the commit, if one was asked for.
    """

    plan: Plan
    commit: str | None = None
    pr_url: str | None = None
    tag: str | None = None


def release(
    model_dir: str | Path,
    repo_id: str,
    *,
    push: bool = False,
    private: bool = True,
    revision: str = "main",
    create_pr: bool = False,
    tag: str | None = None,
    message: str | None = None,
    parent: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    delete: Sequence[str] = (),
    foreign_results: bool = False,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> Release:
    """Check a saved model and, with ``push``, publish it on the Hub; see the module docstring.

    Args:
        model_dir: a model saved with its card.
        repo_id: where it goes, "org/name".
        push: publish; otherwise show what publishing would do.
        private: whether the repository stays private. A new one is created private in any case and made public, if
            asked for, once the release is verified; a public one is only released to with ``private=False``.
        revision: the branch.
        create_pr: open a pull request on the branch instead of committing to it; then no tag is set and the
            repository stays as private as it is.
        tag: a tag for the commit, such as "v1.0". A tag is never moved.
        message: the commit's title.
        parent: the commit at which the branch was looked at; the release is refused if it has moved since. Without it
            that is the moment of this call.
        include: patterns of files to publish beyond those of a model.
        exclude: patterns of files to leave out.
        delete: patterns of remote files to delete that the release does not have.
        foreign_results: publish a card whose results name no model they were measured on.
        endpoint: the Hub; HF_ENDPOINT or huggingface.co by default.
        say: receives every message.

    Raises:
        ReleaseError: a check failed, the remote moved, the Hub refused or failed.
        InputError: ``model_dir`` is no directory with files to publish.
    """
    if create_pr and tag:
        raise ReleaseError("a pull request gets no tag; release with the tag after it is merged")
    checks = check_release(model_dir, repo_id, include=include, exclude=exclude, foreign_results=foreign_results)
    lines = [
        f"{'ok  ' if check.ok else 'FAIL'} {check.name}" + f" ({check.note})" * bool(check.note) for check in checks
    ]
    say("\n".join(lines) + "\n")
    if problems := [problem for check in checks for problem in check.problems]:
        raise ReleaseError(f"{model_dir} is not ready to be released: " + "; ".join(problems))
    return publish(
        Path(model_dir),
        release_files(model_dir, include, exclude),
        repo_id,
        push=push,
        private=private,
        revision=revision,
        create_pr=create_pr,
        tag=tag,
        message=message,
        parent=parent,
        delete=delete,
        endpoint=endpoint,
        say=say,
    )


def publish(
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    *,
    repo_type: str = "model",
    push: bool = False,
    private: bool = True,
    revision: str = "main",
    create_pr: bool = False,
    tag: str | None = None,
    message: str | None = None,
    parent: str | None = None,
    delete: Sequence[str] = (),
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> Release:
    """Steps 1 to 5 of the module docstring for a folder that is checked already; see :func:`release`.

    Args:
        folder: where the files are.
        files: their paths below it.
        repo_type: "model", or "space" for a gradio Space, whose embeddings are not compared.
    """
    api = HfApi(endpoint=endpoint)

    def look() -> Plan:
        return make_plan(api, folder, files, repo_id, revision=revision, tag=tag, delete=delete, repo_type=repo_type)

    untouched = f"Nothing on {revision} of {repo_id} was changed."
    with _explained(f"looking at {repo_id}", untouched):
        plan = first = look()
        say(str(plan))
        if parent and not plan.done and not (plan.head or "").startswith(parent):
            raise ReleaseError(f"{describe_movement(api, plan, parent, plan.head)}. {untouched}")
    if plan.tagged and not (plan.done and plan.tagged == plan.head):
        raise ReleaseError(f"the tag {tag} stands on {plan.tagged[:8]} already; choose another one. {untouched}")
    if private and plan.private is False:
        raise ReleaseError(
            f"{repo_id} is public, so releasing there publishes the {repo_type}; say so with --public (private=False). "
            f"{untouched}"
        )
    if not push:
        at = f" --parent {plan.head}" if plan.head else ""
        say(f"Dry run: nothing was sent. To release, run the same command with --push{at}")
        return Release(plan)

    with _explained(f"preparing {repo_id}", untouched):
        if not plan.exists:
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=True, exist_ok=True, space_sdk=sdk)
            plan = look()
        if plan.head is None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
            plan = look()
    commit, pr_url = _commit(api, plan, look, folder, message or f"Release {repo_id}", create_pr)
    left = [*(["the tag"] if tag else []), *(["making it public"] if not (private or create_pr) else [])]
    held = f"{'The pull request' if create_pr else revision} holds the whole release, commit {commit[:8]}. "
    with _explained("verifying the commit", f"{held}Still to do: {', '.join(['verifying it', *left])}."):
        _verify(api, plan, folder, commit)
        embeddings = ", same embeddings" if repo_type == "model" else ""
        say(f"verified: {len(files)} files of commit {commit[:8]} downloaded, same hashes{embeddings}")
    if tag and plan.tagged != commit:
        with _explained(f"setting the tag {tag}", f"{held}It is verified. Still to do: {', '.join(left)}."):
            _set_tag(api, repo_id, tag, commit)
    if not private and plan.private and not create_pr:
        with _explained(f"making {repo_id} public", f"{held}It is verified. Still to do: making it public."):
            api.update_repo_settings(repo_id, repo_type=repo_type, private=False)
    say(_farewell(plan, commit, pr_url, tag, private or (create_pr and bool(plan.private))))
    return Release(first, commit, pr_url, tag)


def _commit(
    api: HfApi, plan: Plan, look: Callable[[], Plan], folder: Path, message: str, create_pr: bool
) -> tuple[str, str | None]:
    """Commit what differs, or find that it is there already; returns the commit and the pull request's page."""
    if plan.done and plan.head is not None:
        return plan.head, None
    if create_pr:
        with _explained("looking for a pull request of this release", f"Nothing on {plan.repo_id} was changed."):
            found = _find_pull_request(api, plan, folder)
        if found is not None:
            return found
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(path, str(folder / path)) for path in plan.sent),
        *(CommitOperationDelete(path) for path in plan.deleted),
    ]
    unsure = f"Whether it went through is not known; nothing but the whole release can be on {plan.revision}."
    with _explained("the commit", unsure):
        try:
            info = api.create_commit(
                plan.repo_id,
                operations,
                repo_type=plan.repo_type,
                commit_message=message,
                revision=plan.revision,
                create_pr=create_pr,
                parent_commit=plan.head,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == 412:
                now = look()
                moved = describe_movement(api, plan, plan.head, now.head)
                raise ReleaseError(
                    f"refused: {moved}. Nothing was overwritten; look at the change, then release again"
                ) from error
            raise
    return info.oid, info.pr_url


def _find_pull_request(api: HfApi, plan: Plan, folder: Path) -> tuple[str, str] | None:
    """An open pull request that already holds the release: the commit and the page."""
    files = [file.path for file in plan.files]
    for ref in api.list_repo_refs(plan.repo_id, include_pull_requests=True).pull_requests or []:
        remote = remote_files(api, plan.repo_id, ref.target_commit)
        same = all(file.change == "unchanged" for file in compare(folder, files, remote))
        if same and not set(plan.deleted) & set(remote):
            return ref.target_commit, f"{api.endpoint}/{plan.repo_id}/discussions/{ref.name}"
    return None


def _verify(api: HfApi, plan: Plan, folder: Path, commit: str) -> None:
    """Download the commit into an empty directory and compare it with what was to be released."""
    files = [file.path for file in plan.files]
    with tempfile.TemporaryDirectory(prefix="piccolo_st_verify_") as fresh:
        snapshot_download(
            plan.repo_id,
            repo_type=plan.repo_type,
            revision=commit,
            local_dir=fresh,
            allow_patterns=[glob.escape(path) for path in files],
            endpoint=api.endpoint,
        )
        wrong = [path for path in files if not _same_file(folder / path, Path(fresh) / path)]
        if wrong:
            raise ReleaseError(f"commit {commit[:8]} came back different from what was sent: {', '.join(wrong)}")
        if plan.repo_type == "model" and not np.array_equal(embed(fresh), embed(folder), equal_nan=True):
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


def _farewell(plan: Plan, commit: str, pr_url: str | None, tag: str | None, private: bool) -> str:
    where = pr_url or f"{plan.revision} of {plan.repo_id}"
    state = [f"commit {commit[:8]}", *([f"tag {tag}"] if tag else []), "private" if private else "public"]
    released = f"Released: {where}, {', '.join(state)}."
    if plan.repo_type == "space":
        return f"{released} The Hub builds the Space and starts it."
    at = tag or (commit if pr_url or plan.revision != "main" else None)
    argument = f', revision="{at}"' if at else ""
    return (
        f"{released}\n\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{plan.repo_id}"{argument})'
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
