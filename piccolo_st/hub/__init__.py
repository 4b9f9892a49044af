"""Releases on the Hugging Face Hub: checked, shown first, published in one commit, verified.

checks.py    what a model directory has to satisfy
plan.py      what would change on the remote
publish.py   release(): all of it
space.py     release_space(): the page of piccolo_st.demo next to the model

What a trainer pushes while it trains follows the same rules: :mod:`piccolo_st.push`.
"""

from piccolo_st.hub.checks import Check, check_release
from piccolo_st.hub.publish import Release, ReleaseError, release
from piccolo_st.hub.space import release_space

__all__ = [
    "Check",
    "Release",
    "ReleaseError",
    "check_release",
    "release",
    "release_space",
]
