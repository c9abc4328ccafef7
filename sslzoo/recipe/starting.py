"""From which weights does a run start, where its recipe names a file (section `start`) and not its seed alone?

Which file that was is kept: its checksum is taken at the first start and written into the run folder's recipe.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sslzoo.errors import Problem, RunError
from sslzoo.recipe.recipe import Recipe
from sslzoo.recipe.signature import expand
from sslzoo.run import published
from sslzoo.run.folder import Folder
from sslzoo.run.networks import encoders
from sslzoo.step import Method

Say = Callable[[str], None]


def pinned(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the checksum of the file that it starts from: that of the run in `out`, else the file's.

    Raises:
        UserError: there is no such file.
    """
    if recipe.start is None or recipe.start.sha256 is not None:
        return recipe
    known = Folder(out).begun_with("start", "sha256") or published.sha256(_file(recipe))
    return replace(recipe, start=recipe.start.model_copy(update={"sha256": known}))


def _file(recipe: Recipe) -> Path:
    assert recipe.start is not None
    try:
        return Path(expand(recipe.start.file))
    except ValueError as error:  # a variable that is not set
        raise recipe.text.error([Problem("start.file", str(error))]) from error


def start(recipe: Recipe, method: Method, say: Say) -> None:
    """Puts the encoder that a pinned recipe starts from into student and teachers; `say` is told what was taken.

    Predictors, heads and what `without` names stay as the seed starts them.

    Raises:
        UserError: the file cannot be read, is another than it was, holds no such encoder, or several.
    """
    if recipe.start is None:
        return
    asked, file, networks = recipe.start, _file(recipe), encoders(method)
    if (now := published.sha256(file)) != asked.sha256:
        raise RunError(f"start.file: {file} is not the file it was: sha256 {asked.sha256} then, {now} now")
    found = published.candidates(networks["student"], published.read(file), asked.without)
    taken = published.chosen(found, file, asked.take)
    alike = [name for name, encoder in networks.items() if published.put(taken, encoder)]
    say(f"{', '.join(alike)}: {len(taken.weights)} weights from {taken} of {file.name}")
    other = [name for name in networks if name not in alike]
    for names, why in ((asked.without, "as the seed starts them"), (other, "of another architecture, as it starts")):
        if names:
            say(f"{why}: {published.some(names)}")
    if taken.left:
        say(f"left aside: {published.some(taken.left)}")
