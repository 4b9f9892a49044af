"""What a trainer pushes while it trains, by the rules of a release: portable, only a model's files, one commit a push.

transformers' own pushes upload the output directory as it is: the pickled training arguments (which may hold a
token) go along, the tokenizer is saved a second time with the run's truncation in it, and model and trainer state
are two commits. :class:`PortablePushes`, put before a trainer class, replaces them for every ``hub_strategy``:

    end              one push after training
    every_save       one push at every save
    checkpoint       the same, and the trainer's state below ``last-checkpoint`` in the same commit
    all_checkpoints  the same below ``checkpoint-N``, which stay
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from piccolo_st.errors import InputError
from piccolo_st.hub.files import find_leaks, split_files
from piccolo_st.portable import check_portable

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

_PICKLED_ARGUMENTS = "training_args.bin"  # needs unpickling to read, and holds hub_token where one was given


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    revision: str | None = None,
    state_path: str | None = None,
    token: str | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Push a saved checkpoint in one commit.

    Args:
        folder: a checkpoint with a portable model in it; of its other files none is pushed, unless
        state_path: names a folder of the repository: then every file of the checkpoint goes there as well, for
            resuming elsewhere, but for pickled arguments.
        repo_id: an existing repository.
        message: the commit's title.
        revision: the branch, "main" by default.
        token: in place of the one that huggingface_hub is logged in with.
        api: the Hub to push to.

    Raises:
        InputError: the model is not portable, or a file holds a secret or a path of this machine.
        HfHubHTTPError: the Hub refused or failed; nothing was committed.
    """
    folder = Path(folder)
    files, others = split_files(folder)
    found: dict[str, list[str]] = {}
    for report in check_portable(folder):
        for problem in report.problems if report.consumer != "ONNX" else ():
            found.setdefault(problem, []).append(report.consumer)
    problems = [f"{problem} (for {', '.join(consumers)})" for problem, consumers in found.items()]
    problems += find_leaks(folder, files)
    if problems:
        raise InputError(f"{folder} is not pushed: {'; '.join(problems)}")
    operations = _additions(folder, files)
    if state_path:
        state = [name for name in [*files, *others] if Path(name).name != _PICKLED_ARGUMENTS]
        operations += _additions(folder, state, state_path)
    api = api or HfApi(token=token)
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, token=token)


def _additions(folder: Path, names: Sequence[str], below: str = "") -> list[CommitOperationAdd]:
    return [CommitOperationAdd(f"{below}/{name}" if below else name, str(folder / name)) for name in names]


class PortablePushes(_Base):
    """A mixin for a ``Trainer`` whose ``_save`` writes portable models: its pushes follow :func:`push_checkpoint`.

    ``class MyTrainer(PortablePushes, SentenceTransformerTrainer)``. A push that fails while training goes on is
    logged as an error; the next one carries everything again.
    """

    hub_model_id: Any  # None until the trainer has made its repository
    push_in_progress: Any

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
        shutil.copytree(checkpoint_folder, staging, copy_function=_link, dirs_exist_ok=True)

        def push() -> CommitInfo:
            try:
                return push_checkpoint(
                    staging,
                    self.hub_model_id,
                    message=f"Training in progress, step {self.state.global_step}",
                    revision=args.hub_revision,
                    state_path=state_path,
                    token=args.hub_token,
                )
            finally:
                shutil.rmtree(staging, ignore_errors=True)

        job: Future[CommitInfo] = HfApi().run_as_future(push)
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
        **kwargs: Any,
    ) -> Any:
        """Save the model and push it in one commit; the arguments are those of ``Trainer.push_to_hub``."""
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        with tempfile.TemporaryDirectory(prefix="._push-", dir=self.args.output_dir) as staging:
            self.save_model(staging, _internal_call=True)  # every rank takes part in it
            if not self.is_world_process_zero():
                return None
            self._finish_current_push()
            return push_checkpoint(
                staging,
                self.hub_model_id,
                message=commit_message or "End of training",
                revision=revision or self.args.hub_revision,
                token=token,
            )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _log_failure(job: Future[CommitInfo]) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        logger.error("pushing a checkpoint to the Hub failed: %s", error)
