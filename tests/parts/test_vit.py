"""Does the vision transformer see what it is shown, where it is shown, and nothing else?"""

import math

import pytest
import torch
from sslzoo_vit import ViT
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Patches, Progress, step
from sslzoo.contracts import Student
from sslzoo.nn import patchify, sincos
from sslzoo.run.data import Micros, Order, Sources, Views, split
from sslzoo.step import encode_and_predict

SMALL = {"width": 24, "depth": 2, "heads": 2, "patch": 4}


def vit(**keys):
    torch.manual_seed(0)
    return ViT(**{**SMALL, **keys}).eval()


def images(s=2, size=(16, 24), seed=1):
    return torch.randn(s, 3, *size, generator=torch.Generator().manual_seed(seed))


def context(s=2, k=5, places=24, seed=2):
    order = torch.rand(s, places, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return Patches(order[:, :k])


def without(pixels, index, patch=4):
    """The same images, every patch that `index` does not name painted over."""
    keep = torch.zeros(len(pixels), (pixels.shape[2] // patch) * (pixels.shape[3] // patch)).scatter(1, index, 1.0)
    grid = keep.unflatten(1, (pixels.shape[2] // patch, pixels.shape[3] // patch))
    seen = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    return pixels * seen + 7.0 * (1 - seen)


# --- places ---


def test_sincos_table_entry_by_entry():
    table, width = sincos((2, 3), 16), 16
    for row in range(2):
        for column in range(3):
            wanted = []
            for place in (column, row):  # the column is in the first half
                angles = [place * 10000 ** (-k / (width // 4)) for k in range(width // 4)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * 3 + column].tolist() == pytest.approx(wanted, abs=1e-7)
    assert table.dtype == torch.float32


def test_patchify_entry_by_entry():
    pixels = images(1, (4, 6))
    found = patchify(pixels, (2, 3))
    assert found.shape == (1, 4, 18)
    for n, (i, j) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        wanted = [pixels[0, c, i + y, j + x].item() for y in range(2) for x in range(3) for c in range(3)]
        assert found[0, n].tolist() == wanted


@pytest.mark.parametrize("size", [(16, 24), (8, 40), (16, 16)])
def test_any_grid_and_patches_that_are_not_square(size):
    encoder = vit(patch=(4, 8))
    grid = encoder.grid(size)
    assert grid == (size[0] // 4, size[1] // 8)
    tokens = encoder(images(2, size))
    assert tokens.grid == grid
    assert tokens.patches.shape == (2, grid[0] * grid[1], 24)


def test_an_image_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="18 x 24 does not split into patches of 4 x 4"):
        vit()(images(1, (18, 24)))


def test_learned_positions_at_their_own_size_and_at_others():
    encoder = vit(positions="learned", image=(48, 24), class_token=True)
    rising = torch.arange(12.0)[:, None, None].expand(12, 6, 24)
    with torch.no_grad():
        encoder.pos_embed[:, 1:].copy_(rising.reshape(1, 72, 24))  # the class token's row stands first
    assert torch.equal(encoder._position((12, 6), torch.device("cpu")), encoder.pos_embed[0, 1:])
    # On a grid twice as fine patch i of the new grid has its middle at (i + 1/2) / 2 - 1/2 of the old; away from the
    # border bicubic interpolation leaves straight lines straight.
    fine = encoder._position((24, 12), torch.device("cpu")).unflatten(0, (24, 12))
    wanted = ((torch.arange(24) + 0.5) / 2 - 0.5)[4:20, None, None].expand(16, 12, 24)
    assert torch.allclose(fine[4:20], wanted, atol=1e-4)


def test_learned_positions_reach_the_tokens_at_another_size():
    encoder = vit(positions="learned", image=16)
    before = encoder(images(1, (24, 8))).patches
    with torch.no_grad():
        encoder.pos_embed.add_(torch.randn(1, 16, 24))
    assert not torch.allclose(before, encoder(images(1, (24, 8))).patches, atol=1e-2)


# --- who is seen ---


@pytest.mark.parametrize("keys", [{}, {"class_token": True, "registers": 2}, {"hidden": "fill"}])
def test_hidden_patches_have_no_influence(keys):
    encoder, seen, pixels = vit(**keys), context(), images()
    one, other = encoder(pixels, seen), encoder(without(pixels, seen.index), seen)
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.summary, other.summary)
    assert not torch.allclose(one.patches, encoder(images(seed=9), seen).patches, atol=1e-3)


def test_embedding_only_what_is_seen_equals_gathering_afterwards():
    encoder, seen, pixels = vit(), context(), images()
    x = F.conv2d(pixels, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=4)
    x = seen.take(x.flatten(2).transpose(1, 2) + sincos((4, 6), 24))
    for block in encoder.blocks:
        x = block(x)
    assert torch.allclose(encoder(pixels, seen).patches, encoder.norm(x), atol=1e-6)


@pytest.mark.parametrize("registers", [0, 2])
def test_whole_images_agree_with_timm(registers):
    """With a class token, whose position is the table's first row; and with registers, which have no position."""
    shape = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    keys = {"class_token": False, "no_embed_class": True, "global_pool": "avg", "fc_norm": False}
    theirs = VisionTransformer((16, 24), 4, reg_tokens=registers, **shape, **(keys if registers else {})).eval()
    ours = vit(positions="learned", image=(16, 24), class_token=not registers, registers=registers)
    torch.nn.init.normal_(theirs.pos_embed)
    ours.load_state_dict(theirs.state_dict())
    pixels, ahead = images(), registers or 1
    wanted, found = theirs.forward_features(pixels), ours(pixels)
    assert torch.allclose(found.patches, wanted[:, ahead:], atol=1e-5)
    assert torch.allclose(found.prefix, wanted[:, :ahead], atol=1e-5)
    assert torch.equal(found.summary, found.patches.mean(1) if registers else found.prefix[:, 0])


def test_published_ways_of_resampling_positions():
    table = torch.randn(1, 65, 24)
    plane = table[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    for way, keys in (("offset", {"scale_factor": (4.1 / 8, 6.1 / 8)}), ("plain", {"size": (4, 6)})):
        encoder = vit(positions="learned", image=32, class_token=True, resample=way)
        with torch.no_grad():
            encoder.pos_embed.copy_(table)
        wanted = F.interpolate(plane, mode="bicubic", **keys).flatten(2)[0].T
        assert torch.equal(encoder._position((4, 6), torch.device("cpu")), wanted)


def test_order_of_the_context_is_of_no_account():
    encoder, seen, pixels = vit(), context(), images()
    back = Patches(seen.index.flip(1))
    assert torch.allclose(encoder(pixels, back).patches, encoder(pixels, seen).patches.flip(1), atol=1e-6)


@pytest.mark.parametrize("hidden", ["drop", "fill"])
def test_ragged_rows_agree_with_rows_alone(hidden):
    encoder, pixels, full = vit(hidden=hidden, class_token=True), images(), context(k=6)
    ragged = Patches(full.index, torch.tensor([6, 3]))
    found = encoder(pixels, ragged)
    alone = encoder(pixels[1:], Patches(full.index[1:, :3]))
    true = found.patches[1:, :3] if hidden == "drop" else found.patches[1:]
    assert torch.allclose(true, alone.patches, atol=1e-6)
    assert torch.allclose(found.summary[1:], alone.summary, atol=1e-6)


def test_the_mean_of_a_ragged_row_counts_true_patches():
    encoder, pixels, full = vit(), images(), context(k=6)
    found = encoder(pixels, Patches(full.index, torch.tensor([6, 3])))
    assert torch.allclose(found.summary[1], found.patches[1, :3].mean(0), atol=1e-6)
    assert torch.allclose(found.summary[0], found.patches[0].mean(0), atol=1e-6)


def test_fill_keeps_every_place_and_drop_does_not():
    target = context(k=4, seed=5)
    assert vit(hidden="fill")(images(), context()).at(target).shape == (2, 4, 24)
    with pytest.raises(ValueError, match="hidden"):
        vit()(images(), context()).at(target)


def test_layers_are_raw_outputs_of_the_last_blocks():
    encoder, pixels = vit(class_token=True), images()
    tokens = encoder(pixels, layers=2)
    assert len(tokens.layers) == 2
    assert torch.allclose(encoder.norm(tokens.layers[-1]), tokens.patches, atol=1e-6)
    assert not encoder(pixels).layers
    with pytest.raises(ValueError, match="2 blocks"):
        encoder(pixels, layers=3)


# --- sizes and starts ---

# Spec: trainable parameters of the published encoders (patch, width of the position table left out)
PARAMETERS = {
    ("base", 16): 85_646_592,
    ("large", 16): 303_098_880,
    ("huge", 14): 630_434_560,
    ("giant", 16): 1_011_092_608,
}


@pytest.mark.parametrize(("size", "patch"), PARAMETERS)
def test_sizes_have_the_published_parameter_counts(size, patch):
    with torch.device("meta"):
        encoder = ViT(size=size, patch=patch)
        tokens = encoder(torch.empty(1, 3, patch * 4, patch * 4))
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[size, patch]
    assert tokens.patches.shape == (1, 16, encoder.width)


def test_one_seed_one_start():
    one, other = vit(class_token=True).state_dict(), vit(class_token=True).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_starts_are_as_published():
    normal, xavier = vit(width=96, depth=4), vit(width=96, depth=4, init="xavier")
    for layer in (normal.blocks[2].mlp.fc1, normal.blocks[2].attn.proj, normal.patch_embed.proj):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    layer = xavier.blocks[2].mlp.fc1.weight
    assert layer.std().item() == pytest.approx(math.sqrt(2 / (96 + 384)), rel=0.03)
    assert layer.abs().max().item() <= math.sqrt(6 / (96 + 384))
    assert not any(p.any() for name, p in normal.named_parameters() if name.endswith("bias"))


def test_rescale_divides_by_the_root_of_twice_the_depth():
    plain, scaled = vit(depth=3), vit(depth=3, rescale=True)
    for number, (one, other) in enumerate(zip(plain.blocks, scaled.blocks, strict=True), 1):
        assert torch.allclose(other.attn.proj.weight * math.sqrt(2 * number), one.attn.proj.weight)
        assert torch.allclose(other.mlp.fc2.weight * math.sqrt(2 * number), one.mlp.fc2.weight)
        assert torch.equal(other.mlp.fc1.weight, one.mlp.fc1.weight)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"heads": 5}, "24 channels do not split over 5 heads"),
        ({"depth": None}, "give a size"),
        ({"positions": "learned"}, "image"),
        ({"image": 32}, "only learned and relative positions"),
        ({"positions": "relative"}, "image"),
        ({"width": 18, "heads": 2}, "multiple of 4"),
    ],
)
def test_impossible_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        vit(**keys)


# --- precision and compilation ---


def test_bfloat16_stays_close():
    encoder, pixels, seen = vit(width=48), images(), context()
    exact = encoder(pixels, seen).patches
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(pixels, seen).patches
    assert (rough.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.slow
def test_blocks_compile_without_breaks():
    encoder, pixels, seen = vit(), images(), context()
    wanted = encoder(pixels, seen).patches
    for block in encoder.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert torch.allclose(encoder(pixels, seen).patches, wanted, atol=1e-5)
    ragged = Patches(seen.index, torch.tensor([5, 3]))
    assert encoder(pixels, ragged).patches.isfinite().all()


def test_relative_biases_lie_as_fused_attention_reads_them():
    """GPU kernels take a mask whose last dimension is dense, and no other."""
    vit = ViT(width=24, depth=1, heads=3, patch=8, image=32, positions="relative")
    index = torch.arange(16).expand(2, -1)
    assert vit.relative((4, 4), index, 1).is_contiguous()


@pytest.mark.parametrize(
    ("patch_init", "std"), [("init", 0.1), ("torch", 1 / (3 * 64 * 3) ** 0.5), ("kaiming", (2 / 192) ** 0.5)]
)
def test_the_patch_embedding_starts_as_asked(patch_init, std):
    """DINO leaves it to torch (uniform, of deviation 1 / sqrt(3 fan_in)), MSN draws it by Kaiming."""
    torch.manual_seed(0)
    vit = ViT(width=192, depth=1, heads=3, patch=8, init=0.1, patch_init=patch_init)
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx(std, rel=0.03)
    assert vit.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert bool(vit.patch_embed.proj.bias.any()) == (patch_init == "torch")


def test_branches_are_left_out_by_sample_whatever_the_split(monkeypatch):
    """They followed the rank and the micro-batch: two ranks did not give what one gives."""

    class Drawn:
        tasks, size = {}, (8, 8)

        def __len__(self):
            return 4

        def image(self, i):
            return torch.full((3, 8, 8), i / 4.0)

        def __call__(self, image):
            return image + torch.rand(3, 8, 8), torch.zeros(4)

    class Nothing(nn.Module):
        outputs, projector = {}, None

        def forward(self, tokens, target, at):
            return {}

    torch.manual_seed(0)
    encoder = ViT(width=12, depth=3, heads=1, patch=4, drop_path=0.6).train()
    sources, order = Sources(Drawn(), {"image": Views(Drawn(), 2)}, {}), Order(4, 4, 0)

    def tokens(ranks, most):
        shares, found = split(4, ranks, most), []
        for micro in range(shares.accumulate):
            for rank in range(ranks):
                batch = Micros(sources, {"image": (2, 2)}, order, shares, rank)[3 * shares.accumulate + micro]
                read = encode_and_predict(Student(encoder, Nothing()), batch.normalized(), Progress(3, 9))
                found.append(read.tokens["image"].patches.detach().unflatten(0, (2, -1)))
        return torch.cat(found, 1)

    whole = tokens(1, None)
    for ranks, most in ((1, 1), (2, None), (2, 1)):
        assert torch.allclose(tokens(ranks, most), whole, atol=1e-5)
    dropped = [block.drop_path2.chances for block in encoder.blocks]
    assert len({tuple(one.tolist()) for one in dropped}) == 3, "each block has its own"
    monkeypatch.setattr(step, "chances", lambda lots, count: torch.zeros(count, len(lots)))
    assert not torch.allclose(tokens(1, None), whole, atol=1e-2), "nothing was dropped"


def test_the_branches_of_a_rope_block_leave_out_samples_of_their_own():
    from sslzoo_rope.layers import RopeBlock

    assert sum("chances" in vars(module) for module in RopeBlock(16, 2, drop_path=0.5).modules()) == 2
