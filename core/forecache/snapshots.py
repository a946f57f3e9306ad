"""The window of snapshots: one buffer, one Gram matrix, one weighted sum.

This is the only module that touches large tensors: once when a snapshot arrives (its dot products with the window) and
once when a forecast is served (the weighted sum). Everything else in the core is arithmetic on ``n <= 8`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

CHUNK = 1 << 15  # the float64 copy of so many values of the window stays in a CPU's cache
MAX_HISTORY = 8


class Unforecastable(ValueError):
    """A value that can be no snapshot: not finite, or of a kind that has no weighted sum."""


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def products(window: torch.Tensor, value: torch.Tensor) -> Array:
    """Dot products of ``value`` with the rows of ``window``, and with itself last.

    Args:
        window: ``[items, n, d]``.
        value: ``[items, d]``, same dtype and device.

    Returns:
        float64 ``[items, n + 1]``. Products are accumulated in float64 (float32 on a device without it, MPS), since the
        small differences between snapshots must survive the subtraction of large entries; chunked, so that no float64
        copy of the window is made; one device-to-host copy.
    """
    return read([queued(window, value)])[0]


def queued(window: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What :func:`products` reads, still on the device: ``[items, chunks, n + 1]``."""
    exact = torch.float32 if value.device.type == "mps" else torch.float64
    window, value = window.detach(), value.detach()  # and no mode of torch is switched: an interrupt could leave it so
    (items, n, d), parts = window.shape, []
    wide = min(d, chunk(value.device))
    with torch.autocast(value.device.type, enabled=False):
        work = torch.empty((n + 1, wide), dtype=exact, device=value.device)
        for old, new in zip(window, value, strict=True):
            for start in range(0, d, wide):
                part = work[:, : d - start]
                part[:n] = old[:, start : start + wide]
                part[n] = new[start : start + wide]
                parts.append(torch.mv(part, part[n]))
        return torch.stack(parts).view(items, -1, n + 1)


def read(sums: Sequence[torch.Tensor]) -> list[Array]:
    """:func:`products` of each of what :func:`queued` made; a host waits for a GPU once, for all of them."""
    if len({each.device for each in sums}) > 1:
        return [read([each])[0] for each in sums]
    flat = sums[0].flatten() if len(sums) == 1 else torch.cat([each.flatten() for each in sums])
    parts = torch.split(flat.cpu().double(), [each.numel() for each in sums])
    return [part.view(each.shape).sum(1).numpy() for part, each in zip(parts, sums, strict=True)]


def gram_matrix(rows: torch.Tensor) -> Array:
    """Dot products ``[n, n]`` of the vectors ``rows [n, d]``, as :func:`products` forms them."""
    return np.stack([products(rows[None], each[None])[0, :-1] for each in rows])


def sent(numbers: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``numbers`` on ``device``. To a GPU from pinned memory: a copy from any other waits until its queue is empty."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=True).to(device, non_blocking=True)


def chunk(device: torch.device) -> int:
    """Values of a snapshot that are converted at a time, into one work buffer."""
    return CHUNK if device.type == "cpu" else CHUNK * 16


def dense(value: torch.Tensor) -> bool:
    """Whether a tensor holds numbers in rows and columns: not sparse, nested or on "meta"."""
    return value.layout is torch.strided and not value.is_nested and not value.is_meta


class Snapshots:
    """Ring buffer of the last ``capacity`` values of one stream with their times and float64 Gram matrices.

    A value is split into independent items along ``batch_dim`` (``None``, and every 0-d or 1-d tensor: one item); each
    item has its own Gram matrix ``G[j, k] = <v_j, v_k>``, oldest snapshot first. Values are copied in their own dtype,
    because compiled and graph-captured networks reuse their output buffers. State: ``capacity`` snapshots.

    Raises:
        ValueError: ``capacity`` outside 1..8; a value whose shape, dtype or device is not the first one's; a time that
            does not move on in the run's direction.
        Unforecastable: a value that is not a dense floating-point tensor of 16 bits or more, or not finite.
        RuntimeError: :meth:`combine` on an empty window.
    """

    def __init__(self, capacity: int, batch_dim: int | None = 0) -> None:
        if not 1 <= capacity <= MAX_HISTORY:
            raise ValueError(f"history must be 1..{MAX_HISTORY} snapshots, got {capacity}")
        self.capacity, self.batch_dim = capacity, batch_dim
        self.clear()

    def clear(self) -> None:
        """Free every snapshot; the next value may have another shape."""
        self.times: list[float] = []
        self.gram: Array = np.zeros((1, 0, 0))
        self.largest = 0.0  #: norm of the largest snapshot, of any item
        self._slots: list[int] = []  # buffer row of each snapshot, oldest first
        self._buffer: torch.Tensor | None = None
        self._windows: tuple[torch.Tensor, ...] = ()  # [d, capacity] of each item
        self._like: tuple[torch.Size, torch.dtype, torch.device] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def items(self) -> int:
        return len(self.gram)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor state."""
        return 0 if self._buffer is None else self._buffer.numel() * self._buffer.element_size()

    def _rows(self, value: torch.Tensor, name: str = "value") -> torch.Tensor:
        """``value`` as ``[items, d]``, checked against the first value."""
        self.accept(value, name)
        value = value.detach()
        if self.batch_dim is None or value.ndim <= 1:
            return value.reshape(1, -1)
        return value.movedim(self.batch_dim, 0).reshape(value.shape[self.batch_dim], -1)

    def accept(self, value: torch.Tensor, name: str = "value") -> None:
        """Refuse a value that :meth:`push` would refuse for its form, changing nothing."""
        if self._like is None:
            if not dense(value):  # before its shape is asked for
                kind = "nested" if value.is_nested else f"{value.layout}, device {value.device}"
                raise Unforecastable(f"{name} must be a dense tensor that holds numbers, got one that is {kind}")
            if value.dtype not in DTYPES or value.numel() == 0:
                raise Unforecastable(
                    f"{name} must be a non-empty floating-point tensor of 16 bits or more, got {value.dtype} "
                    f"{tuple(value.shape)}"
                )
            if value.ndim > 1 and self.batch_dim is not None and not -value.ndim <= self.batch_dim < value.ndim:
                raise ValueError(f"batch_dim must be an axis of shape {tuple(value.shape)}, got {self.batch_dim}")
            return
        if other := self.differs(value, name):
            raise ValueError(f"{other}; call clear() first")

    def differs(self, value: torch.Tensor, name: str = "value") -> str:
        """In what ``value`` has not the form of the snapshots, in words; "": in nothing."""
        parts = zip(("shape", "dtype", "device"), self._like or (), (value.shape, value.dtype, value.device))  # noqa: B905
        return ", ".join(f"{name} had {what} {was}, now {now}" for what, was, now in parts if was != now)

    def queued(self, value: torch.Tensor, name: str = "value") -> torch.Tensor:
        """What :meth:`products` reads, for :func:`read` to read that of several streams at once."""
        rows = self._rows(value, name)
        return queued(rows[:, None, :][:, :0] if self._buffer is None else self._buffer, rows)

    def products(self, value: torch.Tensor, name: str = "value", known: Array | None = None) -> Array:
        """Dot products ``[items, n + 1]`` of an arriving value with the window (oldest first) and with itself.

        NaN and infinity show up in the product of the value with itself, so a finite value costs no pass of its own.
        ``known``: what was read of :meth:`queued`, if it was.
        """
        row = (read([self.queued(value, name)])[0] if known is None else known)[:, [*self._slots, -1]]
        if not np.isfinite(row).all() and not bool(torch.isfinite(value.detach()).all()):
            raise Unforecastable(f"{name} holds NaN or infinity")
        return row

    def push(self, time: float, value: torch.Tensor, row: Array | None = None) -> None:
        """Copy ``value`` in as the newest snapshot; ``row`` is :meth:`products` of it, if already known."""
        turned = len(self) > 1 and (time - self.times[-1]) * (self.times[-1] - self.times[-2]) <= 0
        if turned or not np.isfinite(time) or time in self.times[-1:]:
            raise ValueError(f"time must move on from {self.times[-1]} in the run's direction, got {time}")
        rows = self._rows(value)
        row = self.products(value) if row is None else row
        if self._buffer is None:
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside it
                buffer = rows.new_zeros(rows.shape[0], self.capacity, rows.shape[1])
                self._windows = buffer.mT.unbind()
            self._buffer, self.gram = buffer, np.zeros((rows.shape[0], 0, 0))
            self._like = (value.shape, value.dtype, value.device)
            self._exact = torch.promote_types(value.dtype, torch.float32)  # of weights and sums
        slot = len(self)
        if slot == self.capacity:  # the oldest goes first: should the copy fail, a shorter window is left, no mixed one
            self.gram, row = self.gram[:, 1:, 1:], row[:, 1:]
            slot = self._slots.pop(0)
            self.times.pop(0)
        self._buffer[:, slot] = rows
        gram = bordered(self.gram, row)
        self.largest = float(np.sqrt(np.diagonal(gram, axis1=1, axis2=2).max()))
        self.gram = gram
        self._slots.append(slot)
        self.times.append(float(time))

    def rewrite(self, weights: Array, value: torch.Tensor) -> None:
        """Put ``value``, which is :meth:`combine` of ``weights``, in the place of the newest snapshot."""
        assert self._buffer is not None
        mixed = np.tile(np.eye(len(self)), (self.items, 1, 1))
        mixed[:, -1] = weights
        self._buffer[:, self._slots[-1]] = self._rows(value)
        self.gram = mixed @ self.gram @ mixed.transpose(0, 2, 1)
        self.largest = float(np.sqrt(np.diagonal(self.gram, axis1=1, axis2=2).max()))

    def combine(self, weights: Sequence[float] | Array) -> torch.Tensor:
        """``sum_j weights[j] * v_j`` (oldest first), in the snapshots' shape and dtype.

        Args:
            weights: ``[n]`` for all items, or ``[items, n]``.

        One tensor is allocated. Half-precision windows are summed in float32 (through a work buffer of fixed size):
        weights rounded to bfloat16 would no longer sum to 1 (2^-9 relative). For the same reason each item is a
        matrix-vector product: a matrix-matrix product of float32 may run in TF32. With ``out=`` autocast leaves it be.
        """
        if self._buffer is None or self._like is None:
            raise RuntimeError("combine: no snapshot yet; observe a computed value first")
        shape, dtype, device = self._like
        each = sent(self._ring(weights), self._exact, device)
        out = torch.empty((self.items, self._buffer.shape[2]), dtype=dtype, device=device)
        for row, window, w in zip(out.unbind(), self._windows, each.unbind(), strict=True):
            if dtype == self._exact:
                torch.mv(window, w, out=row)
            else:
                self._sum_in_chunks(window, w, row)
        if self.batch_dim is None or len(shape) <= 1:
            return out.view(shape)
        axis = self.batch_dim % len(shape)
        out = out.view(shape[axis : axis + 1] + shape[:axis] + shape[axis + 1 :])
        return out.movedim(0, axis) if axis else out

    def _ring(self, weights: Sequence[float] | Array) -> list[list[float]]:
        """Weights ``[items, capacity]`` by row of the buffer."""
        given = np.asarray(weights, dtype=np.float64)
        rows = []
        for item in [given.tolist()] * self.items if given.ndim == 1 else given.tolist():
            row = [0.0] * self.capacity
            for slot, weight in zip(self._slots, item, strict=True):
                row[slot] = weight
            rows.append(row)
        return rows

    def _sum_in_chunks(self, window: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> None:
        """``window [d, capacity] @ w`` in the wider dtype of ``w``, through work buffers of fixed size."""
        wide = min(len(out), 2 * chunk(out.device))
        work = torch.empty((self.capacity, wide), dtype=w.dtype, device=out.device).T
        total = torch.empty(wide, dtype=w.dtype, device=out.device)
        for part, sums in zip(torch.split(window, wide), torch.split(out, wide), strict=True):
            if (m := len(sums)) < wide:
                sums.copy_(torch.mv(work[:m].copy_(part), w, out=total[:m]))
            else:
                sums.copy_(torch.mv(work.copy_(part), w, out=total))


def bordered(gram: Array, row: Array) -> Array:
    """The Gram matrix ``[items, n + 1, n + 1]`` of a window and one more value, from that of the window and
    :func:`products` of the value.
    """
    return np.concatenate([np.concatenate([gram, row[:, :-1, None]], 2), row[:, None, :]], 1)


def norm_of_sum(weights: Array, gram: Array) -> Array:
    """``||sum_j w_j v_j||`` from dot products alone: weights ``[..., n]``, Gram matrices ``[..., n, n]``."""
    return np.asarray(np.sqrt(np.maximum(np.einsum("...j,...jk,...k->...", weights, gram, weights), 0)))


def forward_error(weights: Array, gram: Array) -> Array:
    """``||v - sum_j w_j v_j||``, how far off the forecast of ``v`` with weights ``[..., n]`` is.

    ``gram [..., n + 1, n + 1]`` is the Gram matrix of the window and, last, of ``v``. Float64 products resolve the
    error down to about ``1e-8 ||w||_1 ||v||``.
    """
    return norm_of_sum(np.concatenate([-weights, np.ones((*weights.shape[:-1], 1))], -1), gram)
