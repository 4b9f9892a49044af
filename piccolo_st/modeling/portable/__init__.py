"""Checkpoints that load in whatever their users run: save, load and check them."""

from piccolo_st.modeling.portable.limits import check_savable, problems
from piccolo_st.modeling.portable.readers import CONSUMERS, ONNX_READERS, check_portable
from piccolo_st.modeling.portable.report import ConsumerReport
from piccolo_st.modeling.portable.saving import (
    keep_lengths,
    load_portable,
    put_back_state,
    save_native,
    save_portable,
    saved_lengths,
)

__all__ = [
    "CONSUMERS",
    "ONNX_READERS",
    "ConsumerReport",
    "check_portable",
    "check_savable",
    "keep_lengths",
    "load_portable",
    "problems",
    "put_back_state",
    "save_native",
    "save_portable",
    "saved_lengths",
]
