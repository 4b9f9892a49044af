"""What a trainer pushes while it trains, by the rules of a release: portable, only a model's files, one commit a push.

transformers' own pushes upload the output directory as it is: whatever else lies there and the pickled training
arguments (which may hold a token) go along, the tokenizer is saved a second time with the run's truncation in it, and
model and trainer state are two commits. :class:`PortablePushes`, which PiccoloTrainer has, replaces them for every
``hub_strategy``:

    end              one push after training
    every_save       one push at every save
    checkpoint       the same, and the trainer's state below ``last-checkpoint`` in the same commit
    all_checkpoints  the same below ``checkpoint-N``, which stay

Where an adapter is trained, the model is pushed with it merged, as the run leaves it; the adapter is of the state.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from piccolo_st.errors import InputError
from piccolo_st.hub import finite_waits, hub_reason
from piccolo_st.mining import NEGATIVES
from piccolo_st.modeling import find_leaks, problems, split_files, wrapped
from piccolo_st.releasing.checks import portable_problems

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

_PICKLED_ARGUMENTS = "training_args.bin"  # needs unpickling to read, and holds hub_token where one was given
# The trainer's state beside the model: all of it loads without running code. Anything else stays where it is.
_STATE = (
    "manifest.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "latest",
    "global_step*", "loss.safetensors", NEGATIVES,
)  # fmt: skip


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    revision: str | None = None,
    state_path: str | None = None,
    checkpoint: str | Path | None = None,
    portable: bool = True,
    token: str | None = None,
) -> CommitInfo:
    """Push a saved checkpoint in one commit.

    Args:
        folder: a checkpoint with a portable model in it; of its other files none is pushed, unless
        state_path: names a folder of the repository: then model and trainer state go there as well, for resuming
            elsewhere.
        checkpoint: which state that is, where it does not lie in ``folder``: what is trained is in it as well.
        portable: refuse a model that is not portable. Otherwise it has sentence-transformers' own layout, whose files
            nobody knows beforehand: all but the trainer's state are the model's.
        repo_id: an existing repository.
        message: the commit's title.
        revision: the branch, "main" by default.
        token: in place of the one that huggingface_hub is logged in with.

    Raises:
        InputError: the model is not portable, or a file of it holds a secret or a path of this machine, or one of the
            state a secret.
        HfHubHTTPError: the Hub refused or failed; nothing was committed.
    """
    folder, trained = Path(folder), Path(checkpoint or folder)
    files = split_files(folder)[0]
    model_and_state, rest = split_files(trained, _STATE)
    unknown = [name for name in rest if Path(name).name != _PICKLED_ARGUMENTS]
    if not portable:
        files += unknown
    more = unknown if trained != folder or not portable else []
    state = sorted({*model_and_state, *more}) if state_path else []
    faults = portable_problems(folder, onnx=False)[0] if portable else []
    faults += find_leaks(folder, files)
    faults += find_leaks(trained, [name for name in state if trained != folder or name not in files], paths=False)
    if faults:
        raise InputError(f"{folder} is not pushed: {'; '.join(faults)}")
    operations = _additions(folder, files)
    if state_path:
        operations += _additions(trained, state, state_path)
    finite_waits()
    return HfApi(token=token).create_commit(repo_id, operations, commit_message=message, revision=revision)


def _additions(folder: Path, names: Sequence[str], below: str = "") -> list[CommitOperationAdd]:
    return [CommitOperationAdd(f"{below}/{name}" if below else name, str(folder / name)) for name in names]


class PortablePushes(_Base):
    """A mixin for a ``Trainer`` whose ``_save`` writes portable models: its pushes follow :func:`push_checkpoint`.

    ``class MyTrainer(PortablePushes, SentenceTransformerTrainer)``. A push that fails while training goes on is
    logged as an error; the next one carries everything again. Where the repository cannot be made, or the last push
    fails, that is an InputError.
    """

    hub_model_id: Any  # None until the trainer has made its repository
    push_in_progress: Any
    model: Any
    _pushes: HfApi | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, as the stock trainer does at its start."""
        token = token if token is not None else self.args.hub_token
        remedy = "mend that, or train without train.push_to_hub and publish with python -m piccolo_st release"
        finite_waits()
        with _explained(f"making the repository {self.args.hub_model_id or 'for the pushes'}", token, remedy):
            super().init_hf_repo(token=token, private=private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, strategy = self.args, self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        state_path = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }.get(HubStrategy(strategy))
        # The trainer deletes old checkpoints while a push may still read them: links keep the files.
        staging = Path(tempfile.mkdtemp(prefix="._push-", dir=args.output_dir))
        checkpoint, portable = staging / "checkpoint", not problems(self.model)
        shutil.copytree(checkpoint_folder, checkpoint, copy_function=_link)
        adapter = portable and wrapped(self.model)  # whose checkpoints hold nothing else
        folder = staging / "model" if adapter else checkpoint
        if adapter:
            self._save(str(folder))

        message = f"Training in progress, step {self.state.global_step}"  # which goes on while a push waits

        def push() -> CommitInfo:
            try:
                return push_checkpoint(
                    folder,
                    self.hub_model_id,
                    message=message,
                    revision=args.hub_revision,
                    state_path=state_path,
                    checkpoint=checkpoint,
                    portable=portable,
                    token=args.hub_token,
                )
            finally:
                shutil.rmtree(staging, ignore_errors=True)

        self._pushes = self._pushes or HfApi()  # one has one thread, so that no push overtakes another
        job: Future[CommitInfo] = self._pushes.run_as_future(push)
        job.add_done_callback(_log_failure)
        running: Any = [] if self.push_in_progress is None else [j for j in self.push_in_progress.jobs if not j.done()]
        self.push_in_progress = PushInProgress([*running, job])  # type: ignore[arg-type]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """Save the model and push it in one commit; the arguments are those of ``Trainer.push_to_hub``."""
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        with tempfile.TemporaryDirectory(prefix="._push-", dir=self.args.output_dir) as staging:
            self.save_model(staging, _internal_call=True)  # every rank takes part in it
            return self.push_saved(staging, commit_message or "End of training", token, revision)

    def push_saved(
        self, folder: str | Path, message: str, token: str | None = None, revision: str | None = None
    ) -> CommitInfo | None:
        """Push a model that is saved already, once the pushes before it have ended; the first rank does.

        Raises:
            InputError: it may not be pushed, or the Hub refused or failed.
        """
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        remedy = (
            f"{self.args.output_dir} is as it was; start the run again to push it, or use python -m piccolo_st release"
        )
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        with _explained(f"pushing to {self.hub_model_id}", token, remedy):
            return push_checkpoint(
                folder,
                self.hub_model_id,
                message=message,
                revision=revision,
                portable=not problems(self.model),
                token=token,
            )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _log_failure(job: Future[CommitInfo]) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        logger.error("pushing a checkpoint to the Hub failed: %s", hub_reason(error))


@contextmanager
def _explained(step: str, token: str | None, remedy: str) -> Iterator[None]:
    """Turn what the Hub or the network raises into an InputError that says the step and the remedy, and no token."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{step} failed: {error}; {remedy}") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise InputError(f"{step} failed: {hub_reason(error, token)}; {remedy}") from None
