"""Checkpoints that load in whatever their users run: save, load and check them."""

from piccolo_st.modeling.portable.limits import bare_encoders, check_savable, problems
from piccolo_st.modeling.portable.readers import CONSUMERS, ConsumerReport, check_portable
from piccolo_st.modeling.portable.saving import load_portable, save_native, save_portable

__all__ = [
    "CONSUMERS",
    "ConsumerReport",
    "bare_encoders",
    "check_portable",
    "check_savable",
    "load_portable",
    "problems",
    "save_native",
    "save_portable",
]
