"""UNet: frames to feature maps at the frames' own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

__all__ = ["UNet"]


@final
class UNet(nn.Module):
    """Two convolutions per level on the way down and two on the way up, joined by addition (after
    Ronneberger et al., MICCAI 2015).

    No layer looks at statistics of the whole image, so a pixel's features depend on its
    surroundings alone and a movie can be cut into tiles.

    Args:
        n_in: number of input channels.
        widths: channels per level, full resolution first; each further level halves the resolution.
        n_context: channels of a context that scales and shifts the features of every block; 0:
            none.
    """

    def __init__(self, n_in: int, widths: Sequence[int], n_context: int = 0) -> None:
        super().__init__()
        self.widths = tuple(widths)
        ins = [n_in, *self.widths[:-1]]
        self.down = nn.ModuleList(
            _Block(i, o, n_context) for i, o in zip(ins, self.widths, strict=True)
        )
        pairs = list(zip(self.widths[1:], self.widths[:-1], strict=True))[::-1]
        self.widen = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairs)
        self.up = nn.ModuleList(_Block(o, o, n_context) for _, o in pairs)

    @property
    def stride(self) -> int:
        """Height and width of inputs must be multiples of it."""
        return 2 ** (len(self.widths) - 1)

    @property
    def radius_px(self) -> int:
        """A pixel's features depend on pixels at most this far away."""
        levels = len(self.widths)
        furthest = 0
        for pixel in range(self.stride):
            low = high = pixel
            for level in range(levels):  # back through the convolutions coming up, and upsampling
                low, high = low - 2, high + 2
                if level < levels - 1:
                    low, high = low // 2, high // 2
            for _ in range(levels - 1):  # back through pooling, and the convolutions going down
                low, high = 2 * low - 2, 2 * high + 3
            furthest = max(furthest, pixel - low, high - pixel)
        return furthest

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(n, n_in, y, x), and a context (n, n_context, 1 or y, 1 or x), to (n, widths[0], y,
        x)."""
        contexts = [context]
        for _ in self.widths[1:]:
            last = contexts[-1]
            contexts.append(
                last if last is None or last.shape[2:] == (1, 1) else avg_pool2d(last, 2)
            )
        skips = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x, contexts[level])
            skips.append(x)
        for skip, widen, block, known in zip(
            skips[-2::-1], self.widen, self.up, contexts[-2::-1], strict=True
        ):
            x = block(skip + interpolate(widen(x), scale_factor=2.0, mode="nearest"), known)
        return x


@final
class _Block(nn.Module):
    """Two 3x3 convolutions with a residual connection around the second.

    A context scales and shifts the output of the first, channel by channel (FiLM: Perez et al.,
    AAAI 2018), so that one network adapts to many PSFs.
    """

    def __init__(self, n_in: int, n_out: int, n_context: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1)
        for convolution in (self.first, self.second):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.second.weight, std=0.3 * (2 / (9 * n_out)) ** 0.5)
        self.modulation = nn.Conv2d(n_context, 2 * n_out, 1) if n_context else None
        if self.modulation is not None:  # a network that knows no context yet
            nn.init.zeros_(self.modulation.weight)
            assert self.modulation.bias is not None
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.first(x)
        if self.modulation is not None and context is not None:
            scale, shift = self.modulation(context).chunk(2, 1)
            x = x * (1 + scale) + shift
        x = silu(x)
        return x + silu(self.second(x))
