"""Rows without padding, on a CPU and on a GPU.

attention.py  Attention of many texts in one row of tokens on a CPU, as flash attention's variable-length ...
dropout.py    Dropout on a CPU without the time that drawing its masks takes
packing.py    Rows without padding, on a CPU and on a GPU
varlen.py     Attention of many texts in one row of tokens on a GPU: torch's FlashAttention, and what it must ...
"""
