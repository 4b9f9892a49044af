"""Checkpoints that load in whatever their users run: save, load and check them."""

from piccolo_st.portable.checking import CONSUMERS, ConsumerReport, check_portable
from piccolo_st.portable.saving import load_portable, save_portable

__all__ = ["CONSUMERS", "ConsumerReport", "check_portable", "load_portable", "save_portable"]
