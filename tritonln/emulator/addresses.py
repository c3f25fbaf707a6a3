"""Which tensor an address belongs to: a launch may be given plain addresses, and each access is to be checked.

A program has an address from ``Tensor.data_ptr``, so that is where tensors are noted, without keeping them alive.
An address that was got another way (from numpy, by arithmetic) is known if it lies in the storage of a noted tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

FORGET = 4096  # addresses; past as many, those of tensors that are gone are forgotten


class View:
    """Where a tensor lies, in the words of a tensor, and whether that memory is still there."""

    __slots__ = ("address", "itemsize", "shape", "storage", "strides")

    def __init__(self, tensor: Tensor, address: int):
        self.address, self.shape, self.strides = address, tensor.shape, tensor.stride()
        self.itemsize = tensor.element_size()
        self.storage = StorageWeakRef(tensor.untyped_storage())

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def element_size(self) -> int:
        return self.itemsize

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """From the first byte to the last."""
        return (sum((n - 1) * s for n, s in zip(self.shape, self.strides)) + 1) * self.itemsize

    def held(self) -> torch.UntypedStorage | None:
        """The storage, if it is where it was."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            return None
        start = storage.data_ptr()
        inside = start <= self.address and self.address + self.nbytes <= start + storage.nbytes()
        return storage if inside else None


class Addresses:
    """The tensors whose addresses a program has asked for."""

    def __init__(self) -> None:
        self.views: dict[int, list[View]] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, every data_ptr() is noted."""
        data_ptr = torch.Tensor.data_ptr

        def noting(tensor: Tensor) -> int:
            address = data_ptr(tensor)
            self.note(tensor, address)
            return address

        with mock.patch.object(torch.Tensor, "data_ptr", noting):
            yield

    def note(self, tensor: Tensor, address: int) -> None:
        if not address or tensor.device.type != "cpu":
            return
        known = self.views.setdefault(address, [])
        view = View(tensor, address)
        shaped = view.shape, view.strides, view.itemsize
        known[:] = [v for v in known if (v.shape, v.strides, v.itemsize) != shaped and not v.storage.expired()]
        known.append(view)
        if len(self.views) > FORGET:
            alive = {a: [v for v in views if not v.storage.expired()] for a, views in self.views.items()}
            self.views = {a: views for a, views in alive.items() if views}

    def find(self, address: int) -> list[View]:
        """The living tensors at an address; else what holds it.  Raises LookupError, in words."""
        views = self.views.get(address, [])
        if living := [v for v in views if v.held() is not None]:
            return living
        if views:
            raise LookupError(f"address {address:#x} is that of a tensor of shape {list(views[-1].shape)} that is gone")
        for view in [v for views in self.views.values() for v in views]:
            storage = view.held()
            if storage is not None and 0 <= address - storage.data_ptr() < storage.nbytes():
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                return [View(whole, storage.data_ptr())]
        raise LookupError(f"address {address:#x} is in no tensor on the CPU whose data_ptr() was asked for")
