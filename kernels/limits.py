"""Where x_hat can be restored from y = x_hat weight + bias; numbers alone, for who does not load Triton too.

y is rounded by half a unit in the last place, so that (y - bias) / weight errs by half of one of |x_hat| + |bias| /
|weight|; below y's smallest normal number, by that of this number over |weight|.
"""

MOST_BIAS = 8.0  # times |weight|: x_hat keeps all but three of the bits of y
LEAST_WEIGHT = 2.0**-17  # 2^-14, the smallest normal number of fp16, over MOST_BIAS
