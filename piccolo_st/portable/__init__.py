"""Checkpoints that load in whatever their users run: save, load and check them."""

from piccolo_st.portable.saving import load_portable, save_portable

__all__ = ["load_portable", "save_portable"]
