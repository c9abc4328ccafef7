"""What does an encoder know? Probes of its frozen features, with all labels or few, and fine-tuning of the whole."""

from __future__ import annotations

from sslzoo import hookimpl
from sslzoo_probes.few import FewLabels
from sslzoo_probes.finetune import FineTune
from sslzoo_probes.frozen import Knn, Linear
from sslzoo_probes.heads import Heads


@hookimpl
def sslzoo_probes() -> dict[str, type]:
    """The probes `knn`, `linear`, `heads`, `few` and `finetune`."""
    return {"knn": Knn, "linear": Linear, "heads": Heads, "few": FewLabels, "finetune": FineTune}
