"""What is right? What a teacher says: a copy of the student that follows it by a moving average."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Mask, Patches, Progress, Reading, Schedule, Signal, Student, Tokens, hookimpl
from sslzoo.contracts import Group
from sslzoo.keys import Count, Rate
from sslzoo.nn import Center, drop_nothing, follow

Pair = tuple[Sequence[Tensor], Sequence[Tensor]]
RISING = Schedule.parse({"linear": [0.996, 1.0]})


class Ema(nn.Module):
    """Teacher that follows the student by an exponential moving average, and sees all patches.

    I-JEPA (Assran et al. 2023, section 3): norm layer, layers 0. data2vec (Baevski et al. 2022): layers 6, renorm.
    CAE (Chen et al. 2022): momentum 0 (the student's own weights), norm none, sees targets; and where the regressor has
    another width than the encoder, project and project_patches. BYOL, MSN: project. DINO: project and center. iBOT:
    patches too. Signals: patch [t d] where groups have masks, image [u b e]. Batch norms keep running statistics of
    their own.

    Args:
        momentum: share of the teacher kept at a step.
        norm: layer (normalize each target over its channels, without scale and shift), image (each channel over the
            patches of its image: data2vec 2.0), or none.
        layers: 0 for the tokens after the final norm; n for the mean of the last n blocks, each normalized.
        read: what of those blocks: their output, or what their mlp adds to it (data2vec 2.0).
        renorm: normalize the mean of the layers once more.
        sees: the whole image, or each target block by itself (then there is no image signal).
        project: copy the predictor's projector too, and give what it says of the summary as the image signal; where
            several parts of it (`join`) have one, the name of the part.
        project_patches: give what the projector says of each token as the patch signal, in place of the token.
        center: momentum of a running mean that is taken from each projected signal; none if left out.
    """

    gated = True  # see TargetGenerator

    def __init__(
        self,
        student: Student,
        *,
        momentum: Annotated[Schedule, Field(ge=0, le=1)] = RISING,
        norm: Literal["layer", "image", "none"] = "layer",
        layers: Literal[0] | Count = 0,
        read: Literal["output", "mlp"] = "output",
        renorm: bool = False,
        sees: Literal["image", "targets"] = "image",
        project: bool | str = False,
        project_patches: bool = False,
        center: Rate | None = None,
    ) -> None:
        super().__init__()
        if read == "mlp" and not getattr(student.encoder, "gives_mlp", False):
            raise ValueError("read: this encoder does not give what its MLPs add (gives_mlp), as vit and vit-rope do")
        if read == "mlp" and not 0 < layers <= len(student.encoder.blocks):
            raise ValueError(
                f"read, layers: mlp is of the last 1 to {len(student.encoder.blocks)} blocks, found {layers}"
            )
        if sees == "targets" and (norm == "image" or read == "mlp"):
            raise ValueError("norm, read: image and mlp are of whole images, but the teacher sees targets")
        if project and sees == "targets" and not project_patches:
            raise ValueError(
                "project: the teacher sees targets, of which patches are projected; set project_patches too"
            )
        self.whose = _projecting(student, project) if project else ()
        if project_patches and (not project or layers):
            raise ValueError("project_patches: wants project, and the tokens after the final norm (layers: 0)")
        if center is not None and not project:
            raise ValueError("center: is of projected signals, so it wants project")
        self.momentum = Schedule.parse(momentum)
        self.norm, self.layers, self.renorm, self.sees = norm, layers, renorm, sees
        self.asked = {"mlp": True} if read == "mlp" else {}
        self.encoder = copy.deepcopy(student.encoder).requires_grad_(False)  # type: ignore[attr-defined]
        predictor = _part(student, self.whose)
        self.projector = copy.deepcopy(predictor.projector).requires_grad_(False) if project else None
        width = _projected(predictor) if project else student.encoder.width
        of_patch = width if project_patches else student.encoder.width
        self.project_patches = project_patches
        self.outputs = {"patch": Signal("patch", of_patch)}
        self.outputs |= {"image": Signal("image", width)} if sees == "image" else {}
        self.center = None if center is None else Center(width, center)
        self.patch_center = Center(width, center) if center is not None and project_patches else None
        self._pairs: Pair | None = None
        self.train()

    def train(self, mode: bool = True) -> Ema:
        """Batch norms and centers follow the mode (BYOL's teacher uses the batch's statistics); nothing is dropped."""
        super().train(mode)
        for copied in (self.encoder, self.projector):
            if copied is not None:
                drop_nothing(copied, mode)
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> dict[str, Tensor]:
        """Targets of every group a teacher reads: {"patch": [t d], "image": [u b e]}."""
        patch, image = [], []
        for group in batch.groups.values():
            if group.role == "context":
                continue
            if self.sees == "targets":
                patch += [] if group.mask is None else [self._from_targets(group)]
            else:
                tokens = self.encoder(group.pixels.flatten(0, 1), None, self.layers, **self.asked)
                image.append(self._summary(tokens).unflatten(0, group.pixels.shape[:2]))
                patch += [] if group.mask is None else [self._patches(group.mask, tokens)]
        signals = {"image": torch.cat(image)} if image else {}
        return signals | ({"patch": torch.cat(patch)} if patch else {})

    @torch.no_grad()
    def after_step(self, student: Student, at: Progress, finite: Tensor | None = None) -> None:
        """Moves the teacher: theirs <- m theirs + (1 - m) the student's; and the centers."""
        own, others = self._followed(student)
        follow(own, others, 1.0 - self.momentum(at), finite)
        for center in (self.center, self.patch_center):
            if center is not None:
                center.follow(finite)

    def metrics(self, at: Progress) -> dict[str, float]:
        """The momentum of this step."""
        return {"momentum": self.momentum(at)}

    def _summary(self, tokens: Tokens) -> Tensor:
        said = tokens.summary if self.projector is None else self.projector(tokens.summary)
        return said if self.center is None else self.center(said)

    def _patches(self, mask: Mask, tokens: Tokens) -> Tensor:
        target = mask.target
        if self.patch_center is not None:  # of all tokens, hidden or not
            assert self.projector is not None
            return target.flat(target.take(mask.rows(self.patch_center(self.projector(tokens.patches)))))
        layers = tokens.layers or (tokens.patches,)
        if self.norm == "image":
            layers = [F.instance_norm(layer.float().transpose(1, 2)).transpose(1, 2) for layer in layers]
        found = [target.flat(target.take(mask.rows(layer))) for layer in layers]
        return self._read(found)

    def _from_targets(self, group: Group) -> Tensor:
        """What it says of each target block where it sees nothing else: [t d]."""
        assert group.mask is not None
        target = group.mask.target
        s, m, q = target.index.shape
        rows = group.mask.rows(group.pixels.flatten(0, 1)).repeat_interleave(m, 0)
        length = None if target.length is None else target.length.flatten()
        block = Patches(target.index.flatten(0, 1), length, target.real)
        tokens = self.encoder(rows, block, self.layers)
        if tokens.patches.shape[1] != q:
            raise ValueError("sees: targets wants an encoder that drops what is hidden; set encoder.hidden to drop")
        return self._read([target.flat(layer.unflatten(0, (s, m))) for layer in tokens.layers or (tokens.patches,)])

    def _read(self, found: Sequence[Tensor]) -> Tensor:
        if self.project_patches:
            assert self.projector is not None
            return self.projector(found[0])
        return self._mean(found)

    def _mean(self, layers: Sequence[Tensor]) -> Tensor:
        # Normalizing acts on each token alone, so only the targets' tokens need it.
        normal = [self._normal(layer.float(), self.norm == "layer") for layer in layers]
        return self._normal(torch.stack(normal).mean(0) if len(normal) > 1 else normal[0], self.renorm)

    @staticmethod
    def _normal(x: Tensor, wanted: bool) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) if wanted else x

    def _followed(self, student: Student) -> Pair:
        """The teacher's parameters and the student's; found at the first update, when all is on its device."""
        if self._pairs is None:
            own, other = list(self.encoder.parameters()), list(student.encoder.parameters())  # type: ignore[attr-defined]
            if self.projector is not None:
                own += self.projector.parameters()
                other += _part(student, self.whose).projector.parameters()
            self._pairs = own, other
        return self._pairs


def _part(student: Student, whose: Sequence[str]) -> Any:
    """The predictor, or a part of it."""
    return student.predictor.parts[whose[0]] if whose else student.predictor  # type: ignore[attr-defined]


def _projecting(student: Student, project: bool | str) -> tuple[str, ...]:
    """The name of the part of a joined predictor whose projector is copied; of another predictor: none.

    Raises:
        ValueError: there is no such projector, or it is not said which.
    """
    parts = getattr(student.predictor, "parts", None)
    if not isinstance(parts, nn.ModuleDict):
        if isinstance(project, str):
            raise ValueError(f"project: found {project!r}, but the predictor has no parts; true")
        if student.predictor.projector is None:
            raise ValueError("project: the predictor has no projector to copy")
        return ()
    able = [name for name, part in parts.items() if part.projector is not None]
    if project is True and len(able) > 1:
        raise ValueError(f"project: several parts of the predictor have a projector; name one: {', '.join(able)}")
    if not able or (isinstance(project, str) and project not in able):
        found = f"found {project!r}; " if isinstance(project, str) else ""
        raise ValueError(f"project: {found}parts of the predictor with a projector: {', '.join(able) or 'none'}")
    return (project if isinstance(project, str) else able[0],)


def _projected(predictor: Any) -> int:
    """Channels of what the projector says: those of the image signal, or of the first where there is none."""
    outputs = predictor.outputs
    return outputs.get("image", next(iter(outputs.values()))).width


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """The target generator `ema`."""
    return {"ema": Ema}
