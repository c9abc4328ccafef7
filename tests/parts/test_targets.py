"""Is what target generators call right what the papers call right?"""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from sslzoo_clusters import Clusters
from sslzoo_pixels import Pixels
from sslzoo_readout import Linear
from sslzoo_regressor import Regressor
from sslzoo_resnet import ResNet
from sslzoo_rope import RopeViT
from sslzoo_teachers import Ema
from sslzoo_vit import ViT
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sslzoo import Batch, Group, Mask, Pairing, Patches, Progress, Schedule, Signal, Student
from sslzoo.nn import DropPath
from sslzoo.run import optim
from sslzoo.run.compiling import compile_blocks
from sslzoo.step import Method

AT = Progress(3, 10)


class Head(nn.Module):
    """A predictor with a projector, as BYOL's."""

    def __init__(self, width):
        super().__init__()
        self.outputs = {"image": Signal("image", 7)}
        self.projector = nn.Sequential(nn.Linear(width, 7), nn.BatchNorm1d(7))


def student(head=None, **keys):
    torch.manual_seed(0)
    encoder = ViT(**{"width": 16, "depth": 3, "heads": 2, "patch": 4, "hidden": "fill", **keys})
    return Student(encoder, Linear(encoder) if head is None else head(16))


def patches(*rows, length=None):
    return Patches(torch.tensor(rows), length)


def group(views=1, b=2, mask=None, role="both", seed=0):
    pixels = torch.randn(views, b, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
    return Group(pixels, torch.zeros(views, b, 4), mask, role)


def batch(**groups):
    return Batch(groups, Pairing(torch.zeros(0), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0)))


def mask(length=None, source=None):
    context = patches([0, 1], [0, 1])
    return Mask(context, patches([[2, 3], [4, 5]], [[5, 4], [3, 3]], length=length), source)


# --- ema ---


def test_the_teacher_starts_as_the_student_and_learns_nothing_by_itself():
    pupil = student()
    teacher = Ema(pupil)
    theirs = dict(pupil.encoder.named_parameters())
    for name, parameter in teacher.encoder.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert parameter is not theirs[name]
        assert not parameter.requires_grad
    assert set(teacher.state_dict()) == {f"encoder.{name}" for name in pupil.encoder.state_dict()}


def test_updates_are_the_closed_form():
    pupil = student()
    teacher = Ema(pupil, momentum=Schedule.parse({"linear": [0.5, 0.9]}))
    followed = copy.deepcopy(teacher.encoder.state_dict())
    for step in range(4):
        with torch.no_grad():
            for parameter in pupil.parameters():
                parameter.add_(torch.randn_like(parameter))
        kept = 0.5 + 0.4 * step / 10
        teacher.after_step(pupil, Progress(step, 10))
        followed = {k: kept * v + (1 - kept) * pupil.encoder.state_dict()[k] for k, v in followed.items()}
    for name, value in teacher.encoder.state_dict().items():
        assert torch.allclose(value, followed[name], atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum_are_exact(momentum):
    pupil = student()
    teacher = Ema(pupil, momentum=Schedule.parse(momentum))
    start = copy.deepcopy(teacher.encoder.state_dict())
    with torch.no_grad():
        for parameter in pupil.parameters():
            parameter.mul_(3.0).add_(1.0)
    teacher.after_step(pupil, AT)
    wanted = start if momentum else pupil.encoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in teacher.encoder.state_dict().items())


def test_a_step_that_is_not_finite_moves_nothing_and_one_that_is_moves_the_same():
    pupil = student()
    plain, gated = (Ema(pupil, momentum=Schedule.parse(0.9)) for _ in range(2))
    with torch.no_grad():
        for parameter in pupil.parameters():
            parameter.add_(torch.randn_like(parameter))
    start = copy.deepcopy(gated.state_dict())
    gated.after_step(pupil, AT, torch.tensor(False))
    assert all(torch.equal(value, start[name]) for name, value in gated.state_dict().items())
    plain.after_step(pupil, AT)
    gated.after_step(pupil, AT, torch.tensor(True))
    for name, value in gated.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-6, atol=1e-7)


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write, one tensor of weights or more."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for x in tree_flatten((args, kwargs))[0] + tree_flatten(out if out is not None else args[0])[0]:
                self.total += x.numel() * x.element_size() if isinstance(x, torch.Tensor) and x.ndim else 0
        return out


def test_a_teacher_that_follows_reads_weights_twice_and_writes_them_once():
    pupil = student()
    method = Method(pupil, {"teacher": Ema(pupil)}, {}, {})
    weights = sum(x.numel() * x.element_size() for x in method.targets["teacher"].parameters())
    with _Traffic() as traffic:
        optim.follow(method, AT, torch.tensor(True))
    assert traffic.total == 3 * weights


def test_updates_continue_after_weights_are_loaded():
    pupil = student()
    teacher, other = Ema(pupil, momentum=Schedule.parse(0.5)), Ema(pupil, momentum=Schedule.parse(0.5))
    teacher.after_step(pupil, AT)
    with torch.no_grad():
        for parameter in pupil.parameters():
            parameter.add_(1.0)
    other.load_state_dict(teacher.state_dict())
    for one in (teacher, other):
        one.after_step(pupil, AT)
    wanted = teacher.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_patch_targets_are_normalized_tokens_at_target_places(norm):
    pupil, length = student(), torch.tensor([[2, 2], [2, 1]])
    teacher, read = Ema(pupil, norm=norm), group(mask=mask(length))
    found = teacher(batch(image=read), None, AT)["patch"]
    tokens = teacher.encoder(read.pixels[0]).patches
    rows = [(0, 2), (0, 3), (0, 4), (0, 5), (1, 5), (1, 4), (1, 3)]  # the last is padding, and dropped
    wanted = torch.stack([tokens[s, n] for s, n in rows])
    if norm == "layer":
        mean, variance = wanted.mean(-1, keepdim=True), wanted.var(-1, keepdim=True, unbiased=False)
        wanted = (wanted - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not found.requires_grad


def test_several_layers_are_normalized_then_averaged():
    pupil = student()
    teacher, read = Ema(pupil, layers=2), group(mask=mask())
    found = teacher(batch(image=read), None, AT)["patch"]
    layers = teacher.encoder(read.pixels[0], layers=2).layers
    wanted = sum(F.layer_norm(layer, (16,)) for layer in layers) / 2
    assert torch.allclose(found, read.mask.target.take(wanted).flatten(0, 2), atol=1e-6)


def test_sequences_read_the_view_their_source_names():
    pupil = student()
    teacher = Ema(pupil)
    read = group(mask=mask(source=torch.tensor([1, 1])))
    found = teacher(batch(image=read), None, AT)["patch"].unflatten(0, (2, 2, 2))
    tokens = F.layer_norm(teacher.encoder(read.pixels[0]).patches[1], (16,))
    assert torch.allclose(found[0, 0], tokens[[2, 3]], atol=1e-6)


def test_groups_join_in_order_and_those_of_the_student_alone_are_not_read():
    pupil = student()
    teacher = Ema(pupil)
    first, second = group(mask=mask(), seed=1), group(views=2, role="target", seed=2)
    apart = [teacher(batch(image=one), None, AT) for one in (first, second)]
    found = teacher(batch(first=first, local=group(views=3, role="context"), second=second), None, AT)
    assert torch.allclose(found["image"], torch.cat([one["image"] for one in apart]), atol=1e-6)
    assert found["image"].shape == (3, 2, 16)
    assert torch.equal(found["patch"], apart[0]["patch"])
    assert "patch" not in apart[1]


def test_project_copies_the_projector_whose_batch_norms_are_its_own():
    pupil = student(Head)
    teacher = Ema(pupil, project=True, momentum=Schedule.parse(0.5))
    assert teacher.outputs["image"].width == 7
    pupil.predictor.projector(torch.randn(8, 16))  # moves the student's running statistics
    teacher.after_step(pupil, AT)
    assert torch.equal(teacher.projector[1].running_mean, torch.zeros(7))
    read = group(views=2, b=4)
    found = teacher(batch(image=read), None, AT)["image"]
    summary = teacher.encoder(read.pixels.flatten(0, 1)).summary
    hidden = teacher.projector[0](summary)
    wanted = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()  # of the batch: BYOL
    assert torch.allclose(found.flatten(0, 1), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="projector"):
        Ema(student(), project=True)


def test_a_teacher_drops_nothing_at_random():
    pupil = student(drop_path=0.5).train()
    teacher = Ema(pupil).train()
    assert any(isinstance(m, DropPath) and m.training for m in pupil.modules())
    read = batch(image=group(mask=mask()))
    assert torch.equal(teacher(read, None, AT)["patch"], teacher(read, None, AT)["patch"])


def test_batch_norms_of_a_teacher_of_clusters_follow_the_mode():
    encoder = ResNet(model="resnet18", stem="small")
    teacher = Clusters(Student(encoder, Linear(encoder)), clusters=4)
    assert set(teacher.state_dict()) == {f"encoder.{name}" for name in encoder.state_dict()} | {
        "head.weight",
        "head.bias",
    }
    gathered = dict(teacher.encoder.named_buffers())
    mean = next(name for name in gathered if name.endswith("running_mean"))
    read = batch(image=group(b=4))
    before = gathered[mean].clone()
    teacher.eval()(read, None, AT)
    assert torch.equal(gathered[mean], before)
    teacher.train()(read, None, AT)
    assert not torch.equal(gathered[mean], before)


def test_momentum_is_reported():
    assert Ema(student()).metrics(Progress(5, 10))["momentum"] == pytest.approx(0.998)


# --- pixels ---


def test_pixels_of_a_known_image():
    eye = SimpleNamespace(patch=(2, 2))
    pixels = torch.arange(3 * 4 * 6, dtype=torch.float32).reshape(1, 1, 3, 4, 6)
    read = Group(pixels, torch.zeros(1, 1, 4), Mask(patches([0]), patches([[4]])))
    found = Pixels(SimpleNamespace(encoder=eye), normalize=False)(batch(image=read), None, AT)["patch"]
    # Patch 4 of a 2 x 3 grid: rows 2-3, columns 2-3; three channels 24 apart.
    wanted = [base + channel for base in (14, 15, 20, 21) for channel in (0, 24, 48)]
    assert found.tolist() == [wanted]


def test_normalized_pixels_have_no_mean_and_unit_unbiased_variance():
    generator = Pixels(SimpleNamespace(encoder=SimpleNamespace(patch=(4, 4))))
    assert generator.outputs["patch"].width == 48
    found = generator(batch(image=group(mask=mask())), None, AT)["patch"]
    assert found.shape == (8, 48)
    assert torch.allclose(found.mean(-1), torch.zeros(8), atol=1e-5)
    assert torch.allclose(found.var(-1), torch.ones(8), atol=1e-4)
    flat = Group(torch.ones(1, 2, 3, 8, 12), torch.zeros(1, 2, 4), mask())
    assert not generator(batch(image=flat), None, AT)["patch"].any()


def test_an_encoder_without_patches_has_no_pixel_targets():
    with pytest.raises(ValueError, match="patch"):
        Pixels(SimpleNamespace(encoder=object()))


def test_a_teacher_may_see_each_target_block_alone():
    """CAE: what it says of a block where it sees nothing else."""
    learner = student(hidden="drop")
    teacher = Ema(learner, momentum=0, norm="none", sees="targets")
    asked = patches([[0, 3], [1, 4]], [[2, 5], [4, 0]])
    images = group(mask=Mask(patches([1, 2], [3, 1]), asked))
    found = teacher(batch(image=images), None, AT)["patch"].unflatten(0, (2, 2, 2))
    for s in range(2):
        for m in range(2):
            alone = learner.encoder.eval()(images.pixels[0, s : s + 1], Patches(asked.index[s, m : m + 1]))
            assert torch.allclose(found[s, m], alone.patches[0], atol=1e-5)
    assert set(teacher(batch(image=images), None, AT)) == {"patch"}
    with pytest.raises(ValueError, match="set encoder.hidden to drop"):
        Ema(student(), sees="targets")(batch(image=images), None, AT)


def test_targets_may_be_normalized_over_the_patches_of_an_image():
    """data2vec 2.0: each channel over the patches of its image, before the layers are averaged."""
    learner = student()
    teacher = Ema(learner, norm="image", layers=2, renorm=True)
    asked = patches([[0, 3]], [[2, 5]])
    images = group(mask=Mask(patches([1, 2], [3, 1]), asked))
    layers = learner.encoder.eval()(images.pixels[0], None, 2).layers
    normal = [(x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() for x in layers]
    mean = sum(normal) / 2
    wanted = torch.stack([mean[0, 0], mean[0, 3], mean[1, 2], mean[1, 5]])
    found = teacher(batch(image=images), None, AT)["patch"]
    assert torch.allclose(found, F.layer_norm(wanted, (16,)), atol=1e-5)


def added(teacher, pixels):
    """What the MLPs of the last two blocks say of the patches, heard at the blocks by hand."""
    heard = []
    for block in teacher.encoder.blocks[-2:]:
        layer = block.fc2 if hasattr(block, "fc2") else block.mlp.fc2
        layer.register_forward_hook(lambda _module, _given, out: heard.append(out))
    count = teacher.encoder(pixels).patches.shape[1]
    return [out[:, -count:] for out in heard]


@pytest.mark.parametrize("kind", ["vit", "vit-rope"])
def test_a_teacher_may_read_what_its_mlps_add_and_remembers_nothing_of_other_readings(kind):
    """data2vec 2.0. In between, its encoder is read for RankMe, evaluations and pages."""
    learner = student(class_token=True) if kind == "vit" else student()
    if kind == "vit-rope":
        encoder = RopeViT(width=16, depth=3, heads=2, patch=4, registers=2)
        learner = Student(encoder, Linear(encoder))
    teacher = Ema(learner, layers=2, read="mlp", norm="none")
    images = group(mask=mask())
    teacher.encoder(torch.randn(70, 3, 8, 12))
    found = teacher(batch(image=images), None, AT)["patch"]
    wanted = sum(added(teacher, images.pixels[0])) / 2
    assert torch.allclose(found, images.mask.target.take(wanted).flatten(0, 2), atol=1e-6)


def test_a_compiled_teacher_reads_what_its_mlps_add(monkeypatch):
    learner = student()
    teacher = Ema(learner, layers=2, read="mlp", norm="none")
    images = batch(image=group(mask=mask()))
    eager = teacher(images, None, AT)["patch"]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compile_blocks(Method(learner, {"teacher": teacher}, {}, {}))
    assert torch.allclose(teacher(images, None, AT)["patch"], eager, atol=1e-6)
    torch._dynamo.reset()


def test_an_encoder_without_mlps_is_refused_where_they_are_read():
    encoder = ResNet(model="resnet18", stem="small")
    with pytest.raises(ValueError, match="read: this encoder does not give what its MLPs add"):
        Ema(Student(encoder, Linear(encoder)), layers=1, read="mlp")


def test_targets_alone_are_projected_where_the_regressor_has_a_width_of_its_own():
    """CAE's released code with a decoder of another width: what is aligned lies behind the layer and the norm."""
    torch.manual_seed(0)
    encoder = ViT(width=24, depth=1, heads=2, patch=4, hidden="drop").double()
    regressor = Regressor(encoder, codes=5, depth=1, decoder_depth=1, heads=2, width=16, mlp_ratio=2.0).double()
    student = Student(encoder, regressor)
    teacher = Ema(student, momentum=0, norm="none", sees="targets", project=True, project_patches=True)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    mask = Mask(Patches(order[:, :10]), Patches(order[:, None, 10:]))
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    groups = {"image": Group(pixels[None], torch.zeros(1, 3, 4), mask, "both")}
    batch = Batch(groups, Pairing(torch.zeros(0), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0)))
    with torch.no_grad():  # the student has moved, and so has the teacher of momentum 0
        regressor.projector.embed.weight.mul_(1.5)
    teacher.after_step(student, AT)
    said = teacher(batch, None, AT)["patch"]
    seen = encoder(pixels, Patches(order[:, 10:])).patches.flatten(0, 1)
    layer = regressor.projector
    rows = F.linear(seen, layer.embed.weight, layer.embed.bias)
    wanted = F.layer_norm(rows, (16,), layer.norm.weight, layer.norm.bias, 1e-6)
    torch.testing.assert_close(said, wanted)
    assert teacher.outputs["patch"].width == regressor.outputs["latent"].width == 16
    guess = regressor(encoder(pixels, mask.context), mask.target, AT)
    assert guess["latent"].shape == (18, 16)
    assert guess["code"].shape == (18, 5)
    with pytest.raises(ValueError, match="set project_patches too"):
        Ema(student, sees="targets", project=True)
