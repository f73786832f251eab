"""Find unreferenced runs, which may be deleted."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from forecast import tracking

if TYPE_CHECKING:
    import mlflow


def unreferenced_runs(days: int, results: Path) -> list[mlflow.entities.Run]:
    """Return unreferenced stage runs older than ``days``.

    A run is referenced if its id or its model's id is in a registered model, a version, their tags, or a JSON file in
    ``results``. The last run of `prepare` before a referenced run is kept too, because it logged the data findings.
    """
    client, tag = tracking.connect(), f"tags.`{tracking.STAGE_TAG}` LIKE '%'"
    versions, registered = client.search_model_versions(max_results=200_000), client.search_registered_models()
    import mlflow

    texts = [str(dict(each)) for each in [*versions, *registered]]
    texts += [file.read_text() for file in results.rglob("*.json")]
    referenced = set(re.findall("[0-9a-f]{32}", " ".join(texts)))
    runs = mlflow.search_runs(
        None, tag, order_by=["start_time"], output_format="list", experiment_names=[tracking.EXPERIMENT]
    )
    kept_ids, prepared = set(), ""
    for run in runs:
        prepared = run.info.run_id if run.data.tags[tracking.STAGE_TAG] == "prepare" else prepared
        models = run.outputs.model_outputs  # type: ignore[union-attr] # runs from a server have outputs
        if referenced & {run.info.run_id, *(model.model_id.removeprefix("m-") for model in models)}:
            kept_ids |= {run.info.run_id, prepared}
    end = 1000 * (time.time() - 86400 * days)
    return [run for run in runs if run.info.start_time < end and run.info.run_id not in kept_ids]
