"""The structs that the functions in C take: those of layers.h, attention.h, embeddings.h and blocks.c, field by field.

A struct holds addresses only. What it points to must live as long as it does: `kept`, where there is such a field, holds it.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

from torch import Tensor

FLOAT32, FLOAT16, INT8 = range(3)  # kinds of weights


class CNorm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("n", c_int64), ("eps", c_float))


class CLinear(ctypes.Structure):
    kept: tuple[Tensor | None, ...]  # whose memory it points to

    _fields_ = (
        ("weight", c_void_p), ("bias", c_void_p), ("n_in", c_int64), ("n_out", c_int64), ("kind", c_int64),
        ("shift", c_void_p), ("scale", c_void_p), ("input_scale", c_void_p),
    )  # fmt: skip


class CBlock(ctypes.Structure):
    _fields_ = (
        ("attn_norm", CNorm), ("mlp_norm", CNorm),
        ("qkv", CLinear), ("out", CLinear), ("up", CLinear), ("down", CLinear),
        ("n_head", c_int64), ("scale", c_float),
    )  # fmt: skip


class CStrides(ctypes.Structure):
    _fields_ = (("row", c_int64), ("head", c_int64), ("slot", c_int64))


class CAttention(ctypes.Structure):
    _fields_ = (
        ("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("y", c_void_p),
        ("q_token", c_int64), ("q_head", c_int64), ("strides", CStrides), ("pad", c_void_p),
        ("n_rows", c_int64), ("n_new", c_int64), ("n_seen", c_int64), ("n_head", c_int64), ("head_dim", c_int64),
        ("scale", c_float),
    )  # fmt: skip


class CCache(ctypes.Structure):
    kept: object  # whose memory it points to

    _fields_ = (
        ("slots", c_void_p), ("layer_stride", c_int64), ("value_offset", c_int64), ("strides", CStrides),
        ("pad", c_void_p), ("length", c_int64),
    )  # fmt: skip


class CTable(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p), ("n", c_int64), ("width", c_int64), ("kind", c_int64),
        ("scale", c_void_p), ("input_scale", c_void_p),
    )  # fmt: skip


class CModel(ctypes.Structure):
    kept: object  # whose memory it points to

    _fields_ = (
        ("tokens", CTable), ("positions", CTable), ("blocks", ctypes.POINTER(CBlock)), ("n_layer", c_int64),
        ("final_norm", CNorm), ("head", CLinear),
    )  # fmt: skip
