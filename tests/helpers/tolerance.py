"""Results held to the tolerance of tritonln/tolerance.py."""

from torch import Tensor

from tritonln.tolerance import error, tolerance


def assert_close(
    name: str, out: Tensor, reference: Tensor, terms: int = 1, kappa: float = 1.0, scale: float = 0.0
) -> None:
    assert out.shape == reference.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(reference.shape)}"
    if not out.numel():
        return
    found, allowed = error(out, reference), tolerance(out, reference, terms, kappa, scale)
    assert found <= allowed, f"{name}: max error {found:.3e} > {allowed:.3e} ({out.dtype})"
