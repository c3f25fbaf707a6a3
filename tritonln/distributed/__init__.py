"""Norms on several devices: of rows that are split over ranks, and as Megatron's models ask for them.

Sharded DTensors need nothing of this: every operator of tritonln takes them.  Importing this module makes the rules for
that known at once, for graphs in which the custom ops stand by themselves.
"""

from tritonln.distributed.megatron import MegatronNorm
from tritonln.distributed.split_rows import layer_norm, rms_norm
from tritonln.ops.subclasses import RULES

for _register in RULES.values():
    _register()

__all__ = ["MegatronNorm", "layer_norm", "rms_norm"]
