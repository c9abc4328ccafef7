"""`sslzoo import`: begin a run with an encoder that others trained."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import Written, recipe_options


@click.command("import")
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path))
@recipe_options
@click.option("--out", type=Written(folder=True), required=True, help="The new run folder.")
@click.option("--take", help="Which encoder, where the file holds several: target_encoder, teacher.backbone, ...")
@click.option("--without", multiple=True, metavar="WEIGHT", help="A weight that FILE may lack: as the seed starts it.")
def command(
    recipe: str,
    file: Path,
    sets: tuple[str, ...],
    plugins: tuple[Path, ...],
    out: Path,
    take: str | None,
    without: tuple[str, ...],
) -> None:
    """Begin a run with the encoder of FILE, one that others trained, in an architecture that RECIPE has.

    FILE is what a method's authors released, a state dict of timm's, or a checkpoint of another run (.safetensors, or
    what torch.save wrote). The run has taken no step: `sslzoo eval` probes it, `sslzoo train OUT` goes on from it. A
    recipe's section `start` says the same.

    \b
    Examples:
      sslzoo import ijepa/vith14_in1k IN1K-vit.h.14-300e.pth.tar --take target_encoder --out runs/released
      sslzoo import dino/vits16_in1k dino_deitsmall16_pretrain.pth --out runs/released
      sslzoo eval runs/released --untrained
    """
    from sslzoo.recipe import yamltext
    from sslzoo.recipe.fit import check
    from sslzoo.recipe.recipe import load
    from sslzoo.train import begin

    start = {"file": str(file.absolute())} | ({} if take is None else {"take": take})
    start |= {"without": list(without)} if without else {}
    said = (f"start.{key}={yamltext.written(value)}" for key, value in start.items())
    read, installed = load(recipe, (*sets, *said), plugins)
    check(read, installed)
    begin(read, installed, out, click.echo)
    click.echo(f"{out} has taken no step; next: sslzoo eval {out} --untrained")
