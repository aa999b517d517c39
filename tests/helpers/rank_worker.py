"""What torchrun starts in test_train_ranks.py: runs of a list, one after another, in the same processes.

    rank_worker.py CASES.json        [{"name": ..., "settings": [...], "folder": ..., "resume": ...}, ...]

Each rank leaves ranks/NAME-RANK.json beside the list: what its own parameters are in the end, or the error that it met.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import metarun
from metarun.cli.torchrun import end_process
from metarun.jobs.summary import params_sha256
from metarun.storage import ranks


def run(case: dict) -> dict:
    config = metarun.compose(case["settings"])
    config.resume = case.get("resume")
    try:
        result = metarun.run(config, case["folder"])
    except metarun.UserError as error:
        return {"error": str(error)}
    return {"params_sha256": params_sha256(result.params), "status": result.status}


def main() -> None:
    listed = Path(sys.argv[1])
    for case in json.loads(listed.read_text()):
        if ranks.rank() > 0:  # to see that these leave nothing there
            case["folder"] += f"-of-rank-{ranks.rank()}"
        found = run(case)
        path = listed.parent / "ranks" / f"{case['name']}-{ranks.rank()}.json"
        path.write_text(json.dumps(found))
    end_process(0)


if __name__ == "__main__":
    main()
