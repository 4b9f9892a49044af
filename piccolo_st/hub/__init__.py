"""Releases on the Hugging Face Hub: checked, shown first, published in one commit, verified.

files.py     which files are published, and what must not be in them
checks.py    what a model directory has to satisfy
plan.py      what would change on the remote
publish.py   release(): all of it
space.py     release_space(): the page of piccolo_st.demo next to the model
push.py      PortablePushes, push_checkpoint(): what a trainer pushes while it trains, by the same rules
"""

from piccolo_st.hub.checks import Check, check_release
from piccolo_st.hub.publish import Release, ReleaseError, release
from piccolo_st.hub.push import PortablePushes, push_checkpoint
from piccolo_st.hub.space import release_space

__all__ = [
    "Check",
    "PortablePushes",
    "Release",
    "ReleaseError",
    "check_release",
    "push_checkpoint",
    "release",
    "release_space",
]
