"""What do authors of encoders and predictors keep writing? Conveniences, never required."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block as _TimmBlock
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F  # noqa: N812

from sslzoo.contracts import Batch, Encoder, Grid, Pairing, Patches, Tokens, true_entries
from sslzoo.run.batch_norm import BatchNorm as BatchNorm
from sslzoo.run.batch_norm import batch_norm_over_ranks as batch_norm_over_ranks
from sslzoo.run.parallel import all_sum, gather
from sslzoo.step import full_precision as full_precision

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def Block(  # noqa: N802
    width: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    drop_path: float | None = None,
    attention_drop: float = 0.0,
    layer_scale: float | None = None,
) -> nn.Module:
    """A pre-norm transformer block (timm's, SDPA attention, bias on q, k and v, exact GELU): [s k d] -> [s k d].

    It is called as `block(x, attn_mask)`; or with less work and the same result (`Shortcut`): `source` where only some
    tokens are read afterwards, `shared` where sequences begin alike. With `apart` it also says what its MLP adds.

    `drop_path` is the rate of `DropPath`; None: there is none. Of a list of blocks with unlike rates give 0, not None,
    to the one that drops nothing: then all share a compiled graph.

    `layer_scale` starts a learned factor for each channel of both branches (CaiT, Touvron et al. 2021); None: none.
    """
    block = Shortcut(
        width,
        heads,
        mlp_ratio,
        qkv_bias=True,
        attn_drop=attention_drop,
        init_values=layer_scale,
        norm_layer=LayerNorm,  # type: ignore[arg-type]
    )
    if drop_path is not None:
        block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
    return block


class DropPath(nn.Module):
    """Leaves a residual branch out of some sequences (stochastic depth, Huang et al. 2016): [s ..] -> [s ..].

    In an encoder, which sequences these are is a function of seed, step and sample: the engine puts `chances`, a number
    in [0, 1) of each, here before it is called. Without them, and of rows in another number, torch draws.

    The share that is kept is a tensor: so blocks that differ in nothing else share a compiled graph.
    """

    chances: Tensor | None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.kept = torch.tensor(1.0 - rate)  # no buffer: nothing that a step could change
        self.chances = None

    def forward(self, x: Tensor) -> Tensor:
        """Kept sequences are scaled up, so that the mean stays; all are kept outside training."""
        if not self.training:
            return x
        lots = self.chances
        if lots is None or len(lots) != len(x):
            lots = torch.rand(len(x), device=x.device)
        drawn = lots.view(-1, *[1] * (x.ndim - 1)) < self.kept
        return x * (drawn / self.kept).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.kept = fn(self.kept)
        return super()._apply(fn, recurse)


class Shortcut(_TimmBlock):
    """timm's block, that leaves out work whose results are known or never read."""

    attn: Any
    ls1: Any
    ls2: Any
    drop_path1: Any
    drop_path2: Any

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        *,
        source: Tensor | None = None,
        shared: Tensor | None = None,
        apart: bool = False,
    ) -> Any:
        """[s k d] -> [s k d]; `apart`: also what the MLP says, before it is scaled and added, [s k d].

        With `source` [s n d], the tokens `x` ask and those of `source` are read: only x has queries and an MLP. With
        `shared` [s/m n d], these tokens stand ahead of each of m neighbors in x: -> [s n+k d]. Nothing has happened
        to them yet, so norm, queries, keys and values are worked out once for all m.
        """
        qkv = self.attn.qkv
        if source is None and shared is None:
            q, k, v = self._heads(qkv(self.norm1(x)), 3)
        elif shared is not None:
            q, k, v = self._heads(ahead(qkv(self.norm1(shared)), qkv(self.norm1(x))), 3)
            x = ahead(shared, x)
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            (to_q, to_kv), (q_bias, kv_bias) = qkv.weight.split(sizes), qkv.bias.split(sizes)
            (q,) = self._heads(F.linear(self.norm1(x), to_q, q_bias), 1)
            k, v = self._heads(F.linear(self.norm1(source), to_kv, kv_bias), 2)
        drop = self.attn.attn_drop.p if self.training else 0.0
        read = attention(q, k, v, attn_mask, drop)
        x = x + self.drop_path1(self.ls1(self.attn.proj(read.transpose(1, 2).flatten(2))))
        said = self.mlp(self.norm2(x))
        x = x + self.drop_path2(self.ls2(said))
        return (x, said) if apart else x

    def _heads(self, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[s n parts*d] -> `parts` of [s heads n c]."""
        return rows.unflatten(-1, (parts, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, drop: float = 0.0) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017): [.. q c], [.. k c], [.. k c] -> [.. q c].

    `mask` says where a query may look (bool) or what its score gains.
    """
    if not fused_is_slow(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), drop) @ v


def fused_is_slow(q: Tensor) -> bool:
    """Whether plain products beat torch's kernel: its backward in bf16 on CPUs takes 5 to 10 times as long (2.15)."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad


def ahead(shared: Tensor, x: Tensor) -> Tensor:
    """Tokens that stand ahead of each of m neighbors: [s n d] and [(s m) k d] -> [(s m) n+k d]."""
    neighbors = x.unflatten(0, (len(shared), -1))
    first = shared[:, None].expand(-1, neighbors.shape[1], -1, -1)
    return torch.cat([first, neighbors], 2).flatten(0, 1)


class WeightNorm(nn.Module):
    """A linear layer without bias whose rows are directions with a gain: [.. n] -> [.. p] (Salimans & Kingma 2016).

    On normalized inputs it says the cosine to each of p prototypes, times the gain (DINO's last layer).

    Args:
        inputs: channels in.
        outputs: channels out.
        gain: let the gains learn; else each stays 1.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=gain)
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each row."""
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class Center(nn.Module):
    """A running mean of what a teacher says, taken from what it says next (Caron et al. 2021, equation 4).

    It moves in `follow`, once a step, by what was said in all micro-batches on all ranks since the last time.

    Args:
        width: channels.
        momentum: share of the old mean that is kept.
    """

    mean: Tensor

    def __init__(self, width: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"center: found {momentum:g}; a momentum from 0 to below 1")
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self._said: Tensor | None = None  # [width + 1]: sum of rows, and their number

    def forward(self, x: Tensor) -> Tensor:
        """[.. width], less the mean of former steps."""
        if self.training:
            rows = x.detach().flatten(0, -2).to(self.mean.dtype)
            said = torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])
            self._said = said if self._said is None else self._said + said
        return x - self.mean

    @torch.no_grad()
    def follow(self, finite: Tensor | None = None) -> None:
        """Moves the mean; stays where it is if anything said was not finite, or the step (0-d bool)."""
        if self._said is None:
            return
        said, self._said = all_sum(self._said), None
        new = self.mean.lerp(said[:-1] / said[-1], 1 - self.momentum)
        sound = new.isfinite().all() if finite is None else new.isfinite().all() & finite
        self.mean.copy_(torch.where(sound, new, self.mean))


def drop_nothing(teacher: nn.Module, mode: bool) -> None:
    """Sets the mode of a teacher: nothing is dropped at random, and batch norms follow the mode.

    They use and gather the statistics of what the teacher sees, as BYOL's; in eval mode they would never move.
    """
    teacher.eval()  # attention asks its own mode whether to drop
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(mode)


@torch.no_grad()
def follow(own: Sequence[Tensor], others: Sequence[Tensor], share: float, finite: Tensor | None = None) -> None:
    """Moves each of `own` by a share of the way to its other, in place; none where `finite` (0-d bool) is false.

    The device decides and nobody waits for it: weights are read twice and written once, with no copy to undo from.
    """
    mine, theirs = ([x.to_local() if isinstance(x, DTensor) else x for x in some] for some in (own, others))
    if finite is None:
        torch._foreach_lerp_(mine, theirs, share)  # type: ignore[attr-defined]
        return
    shares = {dtype: finite.to(dtype) * share for dtype in {x.dtype for x in mine}}
    torch._foreach_lerp_(mine, theirs, [shares[x.dtype] for x in mine])  # type: ignore[attr-defined]


@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3) -> Tensor:
    """Scores of prototypes [.. n p], logarithms of shares or any, as shares that are balanced, [.. n p].

    Each prototype gets as much over the n rows of all ranks, rows sum to 1: Sinkhorn & Knopp's iteration, columns
    first, as in Caron et al. 2020 (SwAV), MSN and DINOv2. Leading dimensions are balanced apart. With 0 iterations
    rows sum to 1, no more.

    The first iteration is in logarithms: a prototype that no row is near would else be 0 / 0. From then on each row and
    each column has a share of at least 1 / (n p).
    """
    shift = gather(logits.logsumexp(-2, keepdim=True)[None]).logsumexp(0) if iterations else 0
    share = (logits - shift).softmax(-1)
    for _ in range(iterations - 1):  # in place: of CAPI's clusters one such tensor is 9 GB
        share /= all_sum(share.sum(-2, keepdim=True))
        share /= share.sum(-1, keepdim=True)
    return share


def mlp(
    widths: Sequence[int],
    *,
    act: Callable[[], nn.Module] = nn.GELU,
    norm: Callable[[int], nn.Module] | None = None,
    bias: bool = True,
    last_bias: bool = True,
    last_norm: bool = False,
) -> nn.Sequential:
    """Linear layers through these widths; between them, norm and activation: [.. n] -> [.. p].

    Args:
        widths: channels in, of each hidden layer, and out.
        act: activation after hidden layers.
        norm: norm after hidden layers, before the activation.
        bias: give the hidden layers a bias.
        last_bias: give the last layer a bias.
        last_norm: put a norm, without activation, after the last layer.
    """
    parts: list[nn.Module] = []
    for number, (one, other) in enumerate(pairwise(widths), 2):
        last = number == len(widths)
        parts.append(nn.Linear(one, other, bias=last_bias if last else bias))
        parts += [norm(other)] if norm is not None and (last_norm or not last) else []
        parts += [] if last else [act()]
    return nn.Sequential(*parts)


def sincos(grid: Grid, width: int, device: torch.device | None = None, rows_first: bool = False) -> Tensor:
    """The fixed two-dimensional sine-cosine table of MAE and I-JEPA: [N width], row-major.

    The first half of the channels encodes the column, the second the row (`rows_first`: the other way round, as CAE);
    each half has its sines, then its cosines. Positions are whole numbers from 0. It is worked out in float64.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width: sine-cosine positions need a multiple of 4, found {width}")
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in grid)
    halves = []
    axes = (columns.repeat(grid[0]), rows.repeat_interleave(grid[1]))
    for axis in reversed(axes) if rows_first else axes:
        angle = axis[:, None] * rates
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, 1).float()


class Positions(nn.Module):
    """Sine-cosine tables by grid, made when first asked for and kept; nothing of it is stored in checkpoints."""

    def __init__(self, width: int, rows_first: bool = False) -> None:
        super().__init__()
        sincos((1, 1), width)  # refuse a width that does not suit now
        self.width, self.rows_first = width, rows_first
        self._tables: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """The table of a grid: [N width]."""
        if (grid, device) not in self._tables:
            self._tables[grid, device] = sincos(grid, self.width, device, self.rows_first)
        return self._tables[grid, device]

    def __deepcopy__(self, _memo: object) -> Positions:
        return Positions(self.width, self.rows_first)


def patchify(pixels: Tensor, patch: tuple[int, int]) -> Tensor:
    """Pixels of each patch, row-major, each as (row, column, channel): [s 3 H W] -> [s N ph*pw*3]."""
    s, channels, height, width = pixels.shape
    cut = pixels.reshape(s, channels, height // patch[0], patch[0], width // patch[1], patch[1])
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(s, -1, patch[0] * patch[1] * channels)


def target_pixels(batch: Batch, patch: tuple[int, int]) -> Tensor | None:
    """Pixels of the target patches of all groups with masks that a teacher reads: [t ph*pw*3]; None: there are none."""
    found = [
        group.mask.target.flat(group.mask.target.take(group.mask.rows(patchify(group.pixels.flatten(0, 1), patch))))
        for group in batch.groups.values()
        if group.mask is not None and group.role != "context"
    ]
    return torch.cat(found).float() if found else None


def pixels_of(encoder: object) -> int:
    """How many numbers the pixels of one of this encoder's patches are: 3 ph pw.

    Raises:
        ValueError: the encoder has no attribute `patch`, (height, width) in pixels.
    """
    patch = getattr(encoder, "patch", None)
    if patch is None:
        raise ValueError(f"{type(encoder).__name__} has no attribute patch, so its patches have no pixels to speak of")
    return 3 * patch[0] * patch[1]


def said_width(encoder: Encoder, to: Literal["tokens", "pixels"] | int) -> int:
    """How wide a guess is: a token, the pixels of a patch, or a score for each of so many codes.

    Raises:
        ValueError: the encoder's patches have no pixels.
    """
    if isinstance(to, int):
        return to
    return pixels_of(encoder) if to == "pixels" else encoder.width


def start_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear weights normal with this deviation, biases 0 (I-JEPA); use as `parts.apply(start_normal)`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def start_xavier(module: nn.Module) -> None:
    """Linear weights Xavier-uniform, biases 0 (MAE); use as `parts.apply(start_xavier)`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def splits(width: int, heads: int) -> None:
    """Refuses a width that attention heads cannot share equally.

    Raises:
        ValueError: the numbers do not divide.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"width, heads: {width} channels do not split over {heads} heads")


def key_mask(length: Tensor | None, keys: int, ahead: int = 0) -> Tensor | None:
    """Which keys of ragged rows may be attended to: bool [s 1 1 ahead+keys], True where true; None: all.

    `ahead` tokens (class, registers) stand before the row and always count.
    """
    if length is None:
        return None
    return nn.functional.pad(true_entries(length, keys), (ahead, 0), value=True)[:, None, None]


def mean_of(patches: Tensor, length: Tensor | None) -> Tensor:
    """The mean over the patches of each row, padding of ragged ones left out: [s k d] -> [s d]."""
    if length is None:
        return patches.mean(1)
    return (patches * true_entries(length, patches.shape[1])[..., None]).sum(1) / length[:, None]


def mean_of_pairs(each: Tensor, pairing: Pairing) -> Tensor:
    """The mean of what is said of each student view and teacher view [v u], over the pairs that may meet: 0-d.

    Raises:
        ValueError: no pair may.
    """
    if pairing.pairs == 0:
        v, u = each.shape
        views = f"{v} view{'s' if v != 1 else ''} for the student and {u} for the teacher"
        raise ValueError(f"no view meets another one: there are {views}; set views.NAME.count or views.NAME.role")
    return (each * pairing.match).sum() / pairing.match.sum()


def laid_out(seen: Tensor, tokens: Tokens, under: Tensor) -> Tensor:
    """Rows [s k w] at the patches of tokens, over what lies `under` them [s N+1 w]: [s N w].

    Padding of ragged rows falls on the row behind the last, and is cut off.
    """
    count, index = under.shape[1] - 1, tokens.index
    if tokens.length is not None:
        index = index.where(true_entries(tokens.length, index.shape[1]), count)
    return under.scatter(1, index[..., None].expand(-1, -1, seen.shape[-1]), seen)[:, :count]


def joint_mask(tokens: Tokens, target: Patches) -> Tensor | None:
    """Keys that are true where each block's queries stand behind its context: bool [(s m) 1 1 k+q]; None: all are."""
    if tokens.length is None and target.length is None:
        return None
    s, m, q = target.index.shape
    k = tokens.index.shape[1]
    device = tokens.index.device
    context = tokens.length if tokens.length is not None else torch.full((s,), k, device=device)
    block = target.length if target.length is not None else torch.full((s, m), q, device=device)
    seen, asked = true_entries(context, k).repeat_interleave(m, 0), true_entries(block.flatten(), q)
    return torch.cat([seen, asked], 1)[:, None, None]
