"""Models: instructions, lengths, positions, pooling; loaded, batched without padding, saved for everybody.

adapters.py      Adapters of PEFT: few weights that are trained beside those of a checkpoint, which stay as they are
batching.py      Embed the rows of several columns together, with little padding, and return them in their own ...
cutting.py       Where rows sorted by length are cut into chunks, one forward pass each
fingerprint.py   Who a model is: a name and a revision that differ whenever the embeddings may differ
instructions.py  Instructions: the short text put before a query or a document, and who gets which
lengths.py       Two lengths: queries are cut at 64 tokens, documents at 512, the instruction is never cut
loading.py       Models from a checkpoint: any of them with its error in one sentence, the encoder of a run ...
pooling.py       InstructionPooling: ST's Pooling, but the instruction is found in each row instead of once ...
positions.py     How many tokens an encoder has positions for, and more of them than it was trained with
saved_adapters.py  Adapters of PEFT in folders: what one notes of its base, and how a model gets one back
tiny_bert.py     A small random BERT whose vocabulary is learnt from the run's own text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.modeling.adapters import LoraSettings as LoraSettings
    from piccolo_st.modeling.adapters import bare_encoders as bare_encoders
    from piccolo_st.modeling.adapters import exchanged as exchanged
    from piccolo_st.modeling.adapters import need_peft as need_peft
    from piccolo_st.modeling.adapters import wrapped as wrapped
    from piccolo_st.modeling.batching import Features as Features
    from piccolo_st.modeling.batching import SortedRows as SortedRows
    from piccolo_st.modeling.batching import columns_stay_apart as columns_stay_apart
    from piccolo_st.modeling.batching import embed_columns as embed_columns
    from piccolo_st.modeling.batching import row_borders as row_borders
    from piccolo_st.modeling.batching import row_count as row_count
    from piccolo_st.modeling.batching import sort_rows as sort_rows
    from piccolo_st.modeling.batching import without_bookkeeping as without_bookkeeping
    from piccolo_st.modeling.cutting import token_chunks as token_chunks
    from piccolo_st.modeling.fingerprint import Identity as Identity
    from piccolo_st.modeling.fingerprint import content_hash as content_hash
    from piccolo_st.modeling.fingerprint import identify as identify
    from piccolo_st.modeling.fingerprint import tokenizer_state as tokenizer_state
    from piccolo_st.modeling.instructions import COLUMNS as COLUMNS
    from piccolo_st.modeling.instructions import NUMBERED_NEGATIVE as NUMBERED_NEGATIVE
    from piccolo_st.modeling.instructions import PRESETS as PRESETS
    from piccolo_st.modeling.instructions import Instructions as Instructions
    from piccolo_st.modeling.instructions import InstructionSpec as InstructionSpec
    from piccolo_st.modeling.instructions import Task as Task
    from piccolo_st.modeling.instructions import WrittenInstructions as WrittenInstructions
    from piccolo_st.modeling.instructions import column_task as column_task
    from piccolo_st.modeling.instructions import dataset_phrasings as dataset_phrasings
    from piccolo_st.modeling.instructions import dataset_prompts as dataset_prompts
    from piccolo_st.modeling.instructions import dataset_tasks as dataset_tasks
    from piccolo_st.modeling.instructions import resolve_instructions as resolve_instructions
    from piccolo_st.modeling.instructions import saved_instructions as saved_instructions
    from piccolo_st.modeling.instructions import set_prompts as set_prompts
    from piccolo_st.modeling.lengths import check_lengths as check_lengths
    from piccolo_st.modeling.lengths import other_lengths as other_lengths
    from piccolo_st.modeling.loading import check_dtype as check_dtype
    from piccolo_st.modeling.loading import load_encoder as load_encoder
    from piccolo_st.modeling.loading import load_pretrained as load_pretrained
    from piccolo_st.modeling.loading import weights_in_words as weights_in_words
    from piccolo_st.modeling.packed.compiled import compile_layers as compile_layers
    from piccolo_st.modeling.packed.dropout import use_fast_dropout as use_fast_dropout
    from piccolo_st.modeling.packed.packing import packs as packs
    from piccolo_st.modeling.packed.packing import packs_now as packs_now
    from piccolo_st.modeling.packed.packing import use_packing as use_packing
    from piccolo_st.modeling.pooling import InstructionPooling as InstructionPooling
    from piccolo_st.modeling.pooling import set_instruction_pooling as set_instruction_pooling
    from piccolo_st.modeling.portable.contents import check_whole as check_whole
    from piccolo_st.modeling.portable.contents import find_leaks as find_leaks
    from piccolo_st.modeling.portable.contents import release_files as release_files
    from piccolo_st.modeling.portable.contents import split_files as split_files
    from piccolo_st.modeling.portable.limits import check_savable as check_savable
    from piccolo_st.modeling.portable.limits import problems as problems
    from piccolo_st.modeling.portable.onnx_export import export_onnx as export_onnx
    from piccolo_st.modeling.portable.readers import CONSUMERS as CONSUMERS
    from piccolo_st.modeling.portable.readers import ONNX_READERS as ONNX_READERS
    from piccolo_st.modeling.portable.readers import check_portable as check_portable
    from piccolo_st.modeling.portable.report import ConsumerReport as ConsumerReport
    from piccolo_st.modeling.portable.saving import keep_lengths as keep_lengths
    from piccolo_st.modeling.portable.saving import load_portable as load_portable
    from piccolo_st.modeling.portable.saving import put_back_state as put_back_state
    from piccolo_st.modeling.portable.saving import save_native as save_native
    from piccolo_st.modeling.portable.saving import save_portable as save_portable
    from piccolo_st.modeling.portable.saving import saved_lengths as saved_lengths
    from piccolo_st.modeling.saved_adapters import load_trained as load_trained
    from piccolo_st.modeling.saved_adapters import settle_adapter as settle_adapter
    from piccolo_st.modeling.tiny_bert import EncoderSettings as EncoderSettings
    from piccolo_st.modeling.tiny_bert import build_encoder as build_encoder
    from piccolo_st.modeling.tiny_bert import cached_encoder as cached_encoder

__getattr__, __dir__ = lazily(__name__, __file__)
