"""Which configuration each kernel is launched with: looked up by default, searched for when asked."""

from tritonln.configurations.lookup import policy
from tritonln.tuning.ahead import tune, warmup
from tritonln.tuning.ranks import assert_same_across_ranks

__all__ = ["assert_same_across_ranks", "policy", "tune", "warmup"]
